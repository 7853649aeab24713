"""BLIP-2 folders that transformers reads: OPT and T5, and what is refused before weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing

from mmexp.connector import PerceiverConfig, QformerConfig
from mmexp.contracts import Medium, Text, Turn
from mmexp.encoder import HfVisionConfig, LavisVisionConfig
from mmexp.errors import CheckpointError, ConfigError
from mmexp.hf import Export
from mmexp.hf.blip2_export import blip2_state
from mmexp.llm import CausalConfig, Seq2SeqConfig, TinyLlmConfig
from mmexp.model import InputPlan, Plan
from mmexp.prompt import ChatTemplate
from tests.shared_data import load_template

MANIFEST = {"recipe": "r", "stage": "s", "base": {}, "parts": []}
ENCODER = {"width": 24, "num_blocks": 2, "num_heads": 2, "mlp_width": 36, "patch_size_px": 7, "image_size_px": 28}
T5 = ChatTemplate(name="t5", begin="", system="", user="Question: {turn} ", assistant_prompt="Short answer:{eos}",
                  assistant_answer="{piece}{turn}{eos}", supervise="last", media="before_turn")  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """OPT, an OPT that embeds narrower than it thinks, and T5, each with a byte tokenizer that puts its own marks."""
    root = tmp_path_factory.mktemp("llms")
    opt = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 259,
           "max_position_embeddings": 256, "init_std": 0.3, "dropout": 0.0}  # fmt: skip
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 264,
          "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
          "dropout_rate": 0.0, "eos_token_id": 2, "initializer_factor": 1.0}  # fmt: skip
    torch.manual_seed(2)
    made = {
        "opt": transformers.OPTForCausalLM(transformers.OPTConfig(**opt, word_embed_proj_dim=32)),
        "narrow": transformers.OPTForCausalLM(transformers.OPTConfig(**opt, word_embed_proj_dim=16)),
        "t5": transformers.T5ForConditionalGeneration(transformers.T5Config(**t5)),
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
        tokenizer = TinyLlmConfig().load_tokenizer()
        form = "$A </s>" if name == "t5" else "<s> $A"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=form, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in made}


def plan(folders: dict[str, Path], llm: str = "opt", **changes: Any) -> Plan:
    kind = Seq2SeqConfig if llm == "t5" else CausalConfig
    encoder = changes.pop("encoder", None) or LavisVisionConfig(path="", from_scratch=True, **ENCODER)
    connector = changes.pop("connector", None) or qformer("stripped")
    template = changes.pop("template", T5 if llm == "t5" else load_template("blip2_vqa"))
    return Plan(inputs={"image": InputPlan(encoder=encoder, connector=connector)}, template=template,
                llm=kind(path=str(folders[llm])), max_length_tokens=200,
                **{"image_fit": "squash", **changes})  # fmt: skip


def qformer(variant: Any) -> QformerConfig:
    return QformerConfig(variant=variant, num_queries=4, width=16, num_layers=3, num_heads=2, ffn_width=24,
                         vocab_size=40, max_text_tokens=20)  # fmt: skip


def questions() -> list[tuple[Turn, ...]]:
    pixels = np.random.default_rng(0).integers(0, 255, (43, 61, 3), dtype=np.uint8)
    return [
        (Turn(role="user", parts=(Medium(source=Image.fromarray(pixels)), Text(text=text))),)
        for text in ("What is it?", "And now?")
    ]


def built(plan: Plan) -> Any:
    torch.manual_seed(3)
    model = plan.build().eval()
    for part in (model.inputs["image"].encoder, model.inputs["image"].connector):
        for name, parameter in part.named_parameters():
            if "norm" not in name.lower():
                torch.nn.init.normal_(parameter, std=0.25)
    return model


def exported(plan: Plan, out: Path) -> Any:
    export = Export(plan, out)
    export.check()
    return export.write(built(plan), questions(), [MANIFEST])


@pytest.mark.parametrize(
    ("llm", "changes"),
    [
        ("opt", {}),
        ("opt", {"template": load_template("blip2_align")}),
        ("opt", {"template": load_template("blip2_lora"), "exact_pixels": True}),
        ("opt", {"connector": qformer("full"), "image_fit": "crop"}),
        ("t5", {}),
    ],
    ids=["opt_vqa", "bos_is_a_target", "caption", "text_left_out", "t5"],
)
def test_transformers_says_the_same(
    folders: dict[str, Path], tmp_path: Path, llm: str, changes: dict[str, Any]
) -> None:
    agreement = exported(plan(folders, llm, **changes), tmp_path / "out")
    assert agreement.logits < 2e-4 * max(1.0, agreement.scale)
    assert agreement.num_probes == 2
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Blip2ForConditionalGeneration"]
    assert config["num_query_tokens"] == 4
    assert config["image_token_index"] == 259
    assert config["text_config"]["vocab_size"] == max(260, {"opt": 259, "t5": 264}[llm])
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"generation_config.json", "processor_config.json", "preprocessor_config.json", "README.md"} <= names
    card = (tmp_path / "out" / "README.md").read_text()
    assert "processor(images=" in card
    assert ("text path is left out" in card) == ("connector" in changes)


@pytest.mark.parametrize(
    ("llm", "changes", "where", "words"),
    [
        ("opt", {"connector": PerceiverConfig(num_latents=4, depth=1)}, "encoder", "EVA's vision|CLIP, SigLIP"),
        ("opt", {"encoder": LavisVisionConfig(path="", from_scratch=True, family="clip", **ENCODER)}, "encoder.family",
         "ln_pre"),
        ("opt", {"encoder": LavisVisionConfig(path="", from_scratch=True, select_feature="patch", **ENCODER)},
         "encoder.select_feature", "without CLS"),
        ("narrow", {}, "llm", "embeddings 16 wide"),
        ("opt", {"template": ChatTemplate(name="bos_first")}, "template", "Blip2Processor with"),
        ("opt", {"template": load_template("blip2_vqa", new_tokens=("<seen>",))}, "template.new_tokens", "rows of"),
    ],
    ids=["perceiver", "clip", "no_cls", "narrow_opt", "template", "new_tokens"],
)  # fmt: skip
def test_what_no_class_can_hold_is_refused_before_weights(
    folders: dict[str, Path], tmp_path: Path, llm: str, changes: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        Export(plan(folders, llm, **changes), tmp_path / "out").check()
    assert where in {each.where for each in (error.value.errors or [error.value])}
    assert not list(tmp_path.iterdir())


def test_a_clip_encoder_of_transformers_is_refused_with_the_reason(folders: dict[str, Path], tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(hidden_size=24, intermediate_size=36, num_hidden_layers=2,
                                           num_attention_heads=2, image_size=28, patch_size=7)  # fmt: skip
    config.save_pretrained(tmp_path / "clip")
    encoder = HfVisionConfig(path=str(tmp_path / "clip"), from_scratch=True)
    with pytest.raises(ConfigError, match="no norm behind its blocks, or one in front of them") as error:
        Export(plan(folders, encoder=encoder), tmp_path / "out").check()
    assert error.value.where == "encoder"


def test_a_wrong_folder_is_never_called_done(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any) -> dict[str, torch.Tensor]:
        state = blip2_state(*args)
        return {**state, "language_projection.bias": state["language_projection.bias"] + 0.5}

    monkeypatch.setattr("mmexp.hf.blip2_form.blip2_state", wrong)
    with pytest.raises(CheckpointError, match="soft tokens differ"):
        exported(plan(folders), tmp_path / "out")
    assert not (tmp_path / "out").exists()
