"""Mistakes with the parts of BLIP-2, each answered by one error before the model is there.

Every error says what was found, what would have been right, where, and what to try.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from mmexp.config import compose
from mmexp.encoder import HfVisionConfig, LavisVisionConfig
from mmexp.errors import CheckpointError, ConfigError, DataError, MmexpError, SpliceError
from mmexp.llm import CausalConfig, TinyLlmConfig
from mmexp.model import Plan
from mmexp.model.splice import splice
from tests.assets.make_bert import make_tokenizer
from tests.assets.make_blip2 import make_blip2

SIZES = ["num_queries=4", "width=16", "num_layers=2", "num_heads=2", "ffn_width=24", "vocab_size=90"]
OPT = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 259,
       "word_embed_proj_dim": 32, "max_position_embeddings": 256}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """Words of the four fields of an error."""

    found: str
    expected: str
    where: str
    fix: str

    def check(self, error: MmexpError) -> None:
        for name in ("found", "expected", "where", "fix"):
            assert getattr(self, name) in (getattr(error, name) or ""), f"{name}: {getattr(error, name)}"
        assert not getattr(error, "errors", []), "one mistake is one error"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with one picture each, a BERT tokenizer, an OPT and a T5."""
    root = tmp_path_factory.mktemp("bad")
    Image.new("RGB", (30, 30), (200, 90, 25)).save(root / "one.png")
    write_rows(root, "<image>\nWhat?")
    make_tokenizer(root / "bert")
    torch.manual_seed(0)
    transformers.OPTForCausalLM(transformers.OPTConfig(**OPT)).save_pretrained(root / "opt")
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2, "vocab_size": 259}
    ends = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**t5, **ends)).save_pretrained(root / "t5")
    for name in ("opt", "t5"):
        TinyLlmConfig().load_tokenizer().save_pretrained(root / name)
    return root


def write_rows(root: Path, question: str, name: str = "rows.json") -> Path:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "a red circle"}]
    rows = [{"id": f"row{index}", "image": "one.png", "conversations": turns} for index in range(4)]
    (root / name).write_text(json.dumps(rows))
    return root / name


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the model fails the test."""

    def build(self: Plan) -> None:
        pytest.fail("weights were read before the mistake was named")

    monkeypatch.setattr(Plan, "build", build)


def train(root: Path, *settings: str) -> None:
    from mmexp.train import train as run

    paths = [f"paths.outputs={root}/outputs", f"paths.cache={root}/cache", "name=bad"]
    steps = ["stage.batch_size=2", "stage.micro_batch_size=2", "stage.warmup_ratio=0", "trainer=smoke", "logger=none"]
    data = ["data=llava_json", f"data.path={root}/rows.json"]
    run(compose("train", ["scale=paper", "encoder=tiny", *data, *paths, *steps, *settings]))


def first_stage(root: Path, connector: str) -> list[str]:
    sizes = [f"connector.{size}" for size in SIZES]
    return ["stage=blip2/represent", f"connector={connector}", "connector.init=null", *sizes,
            "stage.policy.encoder=frozen", f"llm.tokenizer={root}/bert"]  # fmt: skip


WITH_LLM = ["stage=align", "connector=qformer", *(f"connector.{size}" for size in SIZES)]


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (lambda root: first_stage(root, "qformer"),
         Said("stripped", "a Q-Former that predicts text", "connector", "connector=qformer_full")),
        (lambda root: [*first_stage(root, "qformer"), "objective.itg=0"],
         Said("stripped", "a Q-Former that reads text", "connector", "connector=qformer_text")),
        (lambda root: [*first_stage(root, "qformer_full"), "objective=next_token"],
         Said("no LLM", "an LLM, which predicts the tokens", "llm", "another objective, or an LLM")),
        (lambda root: [*WITH_LLM, "llm=opt2_7b", f"llm.path={root}/opt", "llm.quantize=int8", "stage.policy.llm=full",
                       "template=blip2_align"],
         Said("full, but llm.quantize=int8", "lora or frozen", "stage.policy.llm", "stage.policy.llm=lora")),
        (lambda root: [*WITH_LLM, "llm=flan_t5_xl", f"llm.path={root}/t5", "template=blip2_align",
                       "processor.max_length_tokens=128"],
         Said("blip2_align writes prompt and answer as one text, and t5 reads", "that end with {eos}", "template",
              "template=blip2_t5_vqa")),
    ],
    ids=["text_loss_without_text", "contrast_without_text", "no_llm", "int8_under_full", "t5_with_a_decoder_template"],
)  # fmt: skip
def test_parts_that_do_not_fit_each_other(folder: Path, settings: Callable[[Path], list[str]], said: Said) -> None:
    with pytest.raises(ConfigError) as caught:
        train(folder, *settings(folder))
    said.check(caught.value)
    assert not (folder / "outputs").exists(), "nothing is written"


@pytest.mark.usefixtures("no_weights")
def test_more_placeholders_than_pictures(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "one.png")
    write_rows(tmp_path, "<image>\n<image>\nWhat?")
    with pytest.raises(DataError) as caught:
        train(tmp_path, *WITH_LLM, "llm=tiny", "template=blip2_align")
    for words in ("row 0 (line 1, id 'row0'): 2 <image> in the human turns and 1 in `image`",
                  "expected: as many marks as pictures", "try: name the missing pictures"):  # fmt: skip
        assert words in str(caught.value)


def test_slots_that_are_not_the_soft_tokens() -> None:
    slots = torch.tensor([[True, True, True, False]])
    with pytest.raises(SpliceError) as caught:
        splice(torch.zeros(1, 4, 2), torch.zeros(1, 2, 2), slots, modality="image", slot_lengths=(3,), owners=("row7",))
    Said("2 soft tokens", "3, the slots laid out in the text", "sample row7, image",
         "build both from one configuration").check(caught.value)  # fmt: skip


def changed(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of a checkpoint with other tensors."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    state = load_file(target / "model.safetensors")
    change(state)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


LAYER = "model.decoder.layers.0."


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda state: state.pop(f"{LAYER}fc1.weight"), f"1 missing: {LAYER}fc1.weight"),
        (lambda state: state.update({f"{LAYER}gate.weight": torch.ones(2)}),
         f"1 that nothing here takes: {LAYER}gate.weight"),
        (lambda state: state.update({f"{LAYER}fc3.bias": state.pop(f"{LAYER}fc1.bias")}),
         f"1 missing: {LAYER}fc1.bias; 1 that nothing here takes: {LAYER}fc3.bias"),
    ],
    ids=["missing", "surplus", "renamed"],
)  # fmt: skip
def test_an_llm_with_other_tensors(folder: Path, tmp_path: Path, change: Any, found: str) -> None:
    path = changed(folder / "opt", tmp_path / "opt", change)
    with pytest.raises(CheckpointError) as caught:
        CausalConfig(path=str(path)).build()
    Said(found, "exactly the weights of OPTForCausalLM", f"llm.path={path}", "a whole copy").check(caught.value)


def test_computed_buffers_of_old_files_are_no_surplus(folder: Path, tmp_path: Path) -> None:
    frequencies = {f"{LAYER}self_attn.rotary_emb.inv_freq": torch.ones(2)}
    path = changed(folder / "opt", tmp_path / "opt", lambda state: state.update(frequencies))
    assert CausalConfig(path=str(path)).build()


def test_the_llm_inside_a_blip2_folder_with_other_tensors(tmp_path: Path) -> None:
    TinyLlmConfig().load_tokenizer().save_pretrained(tmp_path / "tokenizer")
    whole = make_blip2(tmp_path / "whole", tmp_path / "tokenizer")
    assert CausalConfig(path=str(whole)).build()
    name = f"language_model.{LAYER}fc1.weight"

    def rename(state: dict[str, torch.Tensor]) -> None:
        state[f"language_model.{LAYER}fc9.weight"] = state.pop(name)

    path = changed(whole, tmp_path / "other", rename)
    with pytest.raises(CheckpointError) as caught:
        CausalConfig(path=str(path)).build()
    Said(f"1 missing: {LAYER}fc1.weight; 1 that nothing here takes: {LAYER}fc9.weight", "exactly the weights of OPT",
         f"llm.path={path}", "a whole copy").check(caught.value)  # fmt: skip


def eva(path: Path, **changes: Any) -> LavisVisionConfig:
    sizes = {"width": 24, "num_blocks": 1, "num_heads": 2, "mlp_width": 36, "patch_size_px": 4, "image_size_px": 16}
    return LavisVisionConfig(path=str(path), **(sizes | changes))


def test_an_encoder_with_other_tensors_or_another_resolution(tmp_path: Path) -> None:
    state = eva(tmp_path, from_scratch=True).build().vit.state_dict()
    file = tmp_path / "eva.pth"
    torch.save({**state, "blocks.0.gate": torch.ones(1)}, file)
    with pytest.raises(CheckpointError) as caught:
        eva(file).build()
    Said("1 that nothing here takes: blocks.0.gate", "exactly the tensors of this encoder", str(file),
         "the file that belongs to").check(caught.value)  # fmt: skip
    torch.save(state, file)
    with pytest.raises(CheckpointError) as caught:
        eva(file, image_size_px=32, resize_positions=False).build()
    Said("positions of a 4 x 4 grid (16 px)", "8 x 8, since encoder.resize_positions=false", str(file),
         "encoder.image_size_px=16, or encoder.resize_positions=true").check(caught.value)  # fmt: skip


@pytest.mark.usefixtures("no_weights")
def test_a_resolution_without_positions(folder: Path) -> None:
    clip = "openai/clip-vit-large-patch14"
    said = Said("448", "224, the size of the position table", "encoder.image_size_px", "encoder.image_size_px=224, or")
    with pytest.raises(ConfigError) as caught:
        HfVisionConfig(path=clip, image_size_px=448).spec()
    said.check(caught.value)
    with pytest.raises(ConfigError) as caught:
        train(folder, *WITH_LLM, "encoder=clip_l14", "encoder.image_size_px=448", "llm=tiny", "template=blip2_align")
    said.check(caught.value)
