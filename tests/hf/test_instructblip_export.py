"""InstructBLIP folders that transformers reads: the Q-Former's text path and its tokenizer come along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing

from mmexp.connector import QformerConfig
from mmexp.contracts import Medium, Text, Turn
from mmexp.encoder import LavisVisionConfig
from mmexp.errors import CheckpointError, ConfigError
from mmexp.hf import Export, load_foreign
from mmexp.llm import CausalConfig, Seq2SeqConfig, TinyLlmConfig
from mmexp.model import InputPlan, Plan
from tests.assets.make_bert import make_tokenizer
from tests.differences import Differences
from tests.shared_data import load_template

MANIFEST = {"recipe": "r", "stage": "s", "base": {}, "parts": []}
CLASS = "InstructBlipForConditionalGeneration"
NUM_WORDS = 95
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256}
CONFIGS: dict[str, Any] = {
    "opt": transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, vocab_size=259, dropout=0.0),
    "vicuna": transformers.LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, vocab_size=259),
    "t5": transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=264,
                                feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
                                dropout_rate=0.0, eos_token_id=2, initializer_factor=1.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three LLMs, each with a byte tokenizer that puts its own marks, and BERT's tokenizer."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(2)
    for name, config in CONFIGS.items():
        auto = transformers.AutoModelForSeq2SeqLM if name == "t5" else transformers.AutoModelForCausalLM
        model = auto.from_config(config)
        for key, parameter in model.named_parameters():
            if name != "t5" and "norm" not in key:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(root / name)
        tokenizer = TinyLlmConfig().load_tokenizer()
        form = "$A </s>" if name == "t5" else "<s> $A"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=form, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        tokenizer.save_pretrained(root / name)
    make_tokenizer(root / "bert")
    return {name: root / name for name in (*CONFIGS, "bert")}


def plan(folders: dict[str, Path], llm: str = "vicuna", **changes: Any) -> Plan:
    encoder = LavisVisionConfig(path="", from_scratch=True, width=24, num_blocks=2, num_heads=2, mlp_width=36,
                                patch_size_px=7, image_size_px=28)  # fmt: skip
    connector = QformerConfig(variant="text", num_queries=4, width=16, num_layers=3, num_heads=2, ffn_width=24,
                              vocab_size=NUM_WORDS, max_text_tokens=20, tokenizer=str(folders["bert"]),
                              max_instruction_tokens=changes.pop("max_instruction_tokens", 12))  # fmt: skip
    template = changes.pop("template", load_template("instructblip_t5" if llm == "t5" else "instructblip"))
    kind = Seq2SeqConfig if llm == "t5" else CausalConfig
    return Plan(inputs={"image": InputPlan(encoder=encoder, connector=connector)}, template=template,
                llm=kind(path=str(folders[llm])), max_length_tokens=200, image_fit="squash", **changes)  # fmt: skip


def questions() -> list[tuple[Turn, ...]]:
    """About one picture; the last is longer than the Q-Former reads."""
    pixels = np.random.default_rng(0).integers(0, 255, (43, 61, 3), dtype=np.uint8)
    asked = ("Is the star red?", "Where is the blue circle?", "the red star and " * 4 + "a square?")
    return [(Turn(role="user", parts=(Medium(source=Image.fromarray(pixels)), Text(text=text))),) for text in asked]


def built(plan: Plan) -> Any:
    torch.manual_seed(3)
    model = plan.build().eval()
    for part in (model.inputs["image"].encoder, model.inputs["image"].connector):
        for name, parameter in part.named_parameters():
            if "norm" not in name.lower():
                torch.nn.init.normal_(parameter, std=0.25)
    return model


@pytest.mark.parametrize("llm", ["opt", "vicuna", "t5"])
def test_transformers_says_the_same(
    differences: Differences, folders: dict[str, Path], tmp_path: Path, llm: str
) -> None:
    first = plan(folders, llm)
    export = Export(first, tmp_path / "out")
    export.check()
    agreement: Any = export.write(built(first), questions(), [MANIFEST])
    assert agreement.num_probes == 3
    assert llm == "t5" or len(set(agreement.answers)) > 1, "answers that say nothing of the question"
    found = torch.tensor(agreement.logits / max(1.0, agreement.scale))
    differences(f"{CLASS} ({llm}), exported", "logits", found, torch.zeros(()), 1e-4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [CLASS]
    assert config["qformer_config"]["vocab_size"] == NUM_WORDS
    assert (tmp_path / "out" / "qformer_tokenizer" / "tokenizer.json").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the last 12 tokens of a longer instruction" in card


def test_a_folder_without_the_right_text_path_is_never_called_done(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmexp.hf.blip2_export import blip2_state

    def wrong(*args: Any) -> dict[str, torch.Tensor]:
        state = blip2_state(*args)
        name = "qformer.embeddings.word_embeddings.weight"
        return {**state, name: state[name].roll(1, 0)}

    monkeypatch.setattr("mmexp.hf.blip2_form.blip2_state", wrong)
    first = plan(folders)
    with pytest.raises(CheckpointError, match="soft tokens differ"):
        Export(first, tmp_path / "out").write(built(first), questions(), [MANIFEST])
    assert not (tmp_path / "out").exists()


def test_a_template_with_a_system_text_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    template = load_template("instructblip", default_system="A chat.")
    with pytest.raises(ConfigError, match="gives the Q-Former other words than the LLM") as error:
        Export(plan(folders, template=template, max_instruction_tokens=20), tmp_path / "out").check()
    assert error.value.where == "template"


@pytest.mark.parametrize("llm", ["opt", "vicuna"])
def test_there_and_back_is_equal_bit_for_bit(folders: dict[str, Path], tmp_path: Path, llm: str) -> None:
    """A published folder, read, written, and read again."""
    config = transformers.InstructBlipConfig(
        vision_config={"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 28, "patch_size": 7},
        qformer_config={"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
                        "vocab_size": NUM_WORDS, "max_position_embeddings": 20},
        text_config=CONFIGS[llm].to_dict() | {"vocab_size": 260}, num_query_tokens=4, image_token_index=259,
    )  # fmt: skip
    published: Any = transformers.InstructBlipForConditionalGeneration(config)
    for name, parameter in published.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1
        if name.endswith("self_attn.qkv.bias"):
            parameter.data.chunk(3)[1].zero_()  # EVA's keys have no bias
    published.save_pretrained(tmp_path / "published")
    language = published.language_model
    language.save_pretrained(tmp_path / "llm")
    transformers.AutoTokenizer.from_pretrained(folders[llm]).save_pretrained(tmp_path / "llm")
    first = plan({**folders, llm: tmp_path / "llm"}, llm)
    model = first.build().eval()
    load_foreign(model.parts(), tmp_path / "published")
    Export(first, tmp_path / "out").write(model, questions(), [MANIFEST])
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("published", "out"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    once, again = first.build(), first.build()
    load_foreign(once.parts(), tmp_path / "published")
    load_foreign(again.parts(), tmp_path / "out")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in once.state_dict().items())
