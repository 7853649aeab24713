"""BLIP-2's first stage as transformers' class of scores: the same scores, and the same tensors there and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from mmexp.connector import QformerConfig
from mmexp.contracts import Medium, Text, Turn
from mmexp.encoder import LavisVisionConfig, TinyVisionConfig
from mmexp.errors import CheckpointError, ConfigError
from mmexp.hf import Export, load_foreign
from mmexp.llm import NoLlmConfig
from mmexp.model import InputPlan, Plan
from mmexp.objective import Blip2RepresentConfig
from tests.assets.make_bert import make_tokenizer
from tests.differences import Differences
from tests.shared_data import load_template

MANIFEST = {"recipe": "r", "stage": "s", "base": {}, "parts": []}
NUM_WORDS = 95
TEXTS = ("a red circle", "the blue square and the green star", "a star " * 30)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("bert"))


def plan(tokenizer: Path, variant: Any = "full", **changes: Any) -> Plan:
    encoder = LavisVisionConfig(path="", from_scratch=True, width=24, num_blocks=2, num_heads=2, mlp_width=36,
                                patch_size_px=7, image_size_px=28)  # fmt: skip
    qformer = QformerConfig(variant=variant, num_queries=4, width=16, num_layers=3, num_heads=2, ffn_width=24,
                            vocab_size=NUM_WORDS, max_text_tokens=40)  # fmt: skip
    inputs = {"image": InputPlan(encoder=changes.pop("encoder", encoder), connector=qformer)}
    llm = NoLlmConfig(tokenizer=str(tokenizer), bos_token="[DEC]")
    template = changes.pop("template", load_template("blip2_represent"))
    return Plan(inputs=inputs, llm=llm, template=template, max_length_tokens=128,
                **{"image_fit": "squash", **changes})  # fmt: skip


def heads_of(plan: Plan, **weights: float) -> Any:
    torch.manual_seed(4)
    return replace(Blip2RepresentConfig(width=8), **weights).build(plan).eval()


def built(plan: Plan, heads: Any) -> Any:
    torch.manual_seed(3)
    model = plan.build().eval()
    for part in (*model.parts().values(), heads):
        for name, parameter in part.named_parameters():
            if "norm" not in name.lower() and name != "temp":
                torch.nn.init.normal_(parameter, std=0.25)
    return model


def pairs() -> list[tuple[Turn, ...]]:
    noise = np.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 255, (43, 61, 3), dtype=np.uint8)) for _ in TEXTS]
    return [
        (
            Turn(role="user", parts=(Medium(source=picture), Text(text="What is it?"))),
            Turn(role="assistant", parts=(Text(text=text.strip()),)),
        )
        for picture, text in zip(pictures, TEXTS, strict=True)
    ]


@pytest.mark.parametrize(("variant", "weights"), [("full", {}), ("text", {"itg": 0.0})])
def test_transformers_gives_the_same_scores(
    differences: Differences, tokenizer: Path, tmp_path: Path, variant: str, weights: dict[str, float]
) -> None:
    first = plan(tokenizer, variant)
    heads = heads_of(first, **weights)
    export = Export(first, tmp_path / "out", heads)
    export.check()
    model = built(first, heads)
    features = model.inputs["image"].features(torch.randn(1, 3, 28, 28))
    agreement: Any = export.write(model, pairs(), [MANIFEST])
    assert features.abs().max() > 0.1, "scores of nothing would be equal"
    assert agreement.num_probes == 3
    for name in ("itc", "itm"):
        found = torch.tensor(getattr(agreement, name))
        differences("Blip2ForImageTextRetrieval, exported", f"{name.upper()} scores", found, torch.zeros(()), 1e-4)
    assert agreement.scale > 0.1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Blip2ForImageTextRetrieval"]
    assert (config["num_query_tokens"], config["image_text_hidden_size"]) == (4, 8)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: zero-shot-image-classification" in card
    assert ("head that predicts text is left out" in card) == (variant == "full")


def test_what_the_card_shows_runs(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan(tokenizer)
    heads = heads_of(first)
    Export(first, tmp_path / "out", heads).write(built(first, heads), pairs(), [MANIFEST])
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "out" / "photo.jpg")
    monkeypatch.chdir(tmp_path / "out")
    code = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code, found)  # the card's own lines
    assert found["near"].shape == (1, 2)
    assert (found["yes"] + found["no"]).item() == pytest.approx(1.0)


def test_there_and_back_is_equal_bit_for_bit(tokenizer: Path, tmp_path: Path) -> None:
    """A published folder, read, written, and read again."""
    config = transformers.Blip2Config(
        vision_config={"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 28, "patch_size": 7},
        qformer_config={"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
                        "vocab_size": NUM_WORDS, "max_position_embeddings": 40, "use_qformer_text_input": True},
        num_query_tokens=4, image_text_hidden_size=8,
    )  # fmt: skip
    published: Any = transformers.Blip2ForImageTextRetrieval(config)
    for name, parameter in published.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25)
        if name.endswith("self_attn.qkv.bias"):
            parameter.data.chunk(3)[1].zero_()  # EVA's keys have no bias
    published.save_pretrained(tmp_path / "published")
    first = plan(tokenizer, "text")
    heads = heads_of(first, itg=0.0)
    model = first.build().eval()
    load_foreign({**model.parts(), "objective": heads}, tmp_path / "published")
    Export(first, tmp_path / "out", heads).write(model, pairs(), [MANIFEST])
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("published", "out"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    again, others = first.build(), heads_of(first, itg=0.0)
    load_foreign({**again.parts(), "objective": others}, tmp_path / "out")
    once, published_heads = first.build(), heads_of(first, itg=0.0)
    load_foreign({**once.parts(), "objective": published_heads}, tmp_path / "published")
    for one, other in ((once, again), (published_heads, others)):
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "weights", "where", "words"),
    [
        ({"encoder": TinyVisionConfig()}, {}, "encoder", "no norm behind its blocks"),
        ({}, {"itm": 0.0}, "objective", "Blip2Represent without itm_head, which Blip2ForImageTextRetrieval"),
        ({}, {"itc": 0.0}, "objective", "without vision_proj, text_proj"),
        ({"template": load_template("blip2_represent", assistant_end="")}, {}, "template", "a Blip2Processor"),
    ],
    ids=["tiny_encoder", "no_matching", "no_contrast", "template"],
)
def test_what_the_class_cannot_hold_is_refused_before_weights(
    tokenizer: Path, tmp_path: Path, changes: dict[str, Any], weights: dict[str, float], where: str, words: str
) -> None:
    first = plan(tokenizer, **changes)
    with pytest.raises(ConfigError, match=words) as error:
        Export(first, tmp_path / "out", heads_of(first, **weights)).check()
    assert error.value.where == where
    assert error.value.expected
    assert error.value.fix


def test_a_run_without_such_an_objective_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this objective without vision_proj, text_proj, itm_head"):
        Export(plan(tokenizer), tmp_path / "out").check()


@pytest.mark.parametrize(("wrong", "words"), [("text_proj", "similarities differ"), ("itm_head", "matching differ")])
def test_other_scores_are_never_called_done(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, words: str
) -> None:
    first = plan(tokenizer)
    heads = heads_of(first)
    export = Export(first, tmp_path / "out", heads)
    write = export.form.write

    def changed(model: Any, folder: Path) -> None:
        getattr(heads, wrong).bias.data += torch.arange(len(getattr(heads, wrong).bias)).float()
        write(model, folder)

    monkeypatch.setattr(export.form, "write", changed)
    with pytest.raises(CheckpointError, match=words):
        export.write(built(first, heads), pairs(), [MANIFEST])
    assert not (tmp_path / "out").exists()
