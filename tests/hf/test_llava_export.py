"""Folders that transformers reads: every family, what is refused, and that a wrong one is never called done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmexp.connector import AveragePoolConfig, IdentityConfig, MlpConfig
from mmexp.contracts import Medium, Text, Turn
from mmexp.errors import CheckpointError, ConfigError
from mmexp.hf import Export
from mmexp.hf.llava import llava_state
from mmexp.model import Plan
from mmexp.prompt import ChatTemplate, DynamicTiles

MANIFEST = {"recipe": "r", "stage": "s", "base": {"llm": "owner/name"}, "parts": []}


def question(size: tuple[int, int] = (61, 43), text: str = "What is it?") -> tuple[Turn, ...]:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    parts = (Medium(source=Image.fromarray(pixels).resize(size)), Text(text="\n"), Text(text=text))
    return (Turn(role="user", parts=parts),)


def built(plan: Plan) -> Any:
    torch.manual_seed(3)
    model = plan.build().eval()
    for parameter in model.inputs["image"].connector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def exported(plan: Plan, out: Path) -> Any:
    export = Export(plan, out)
    export.check()
    return export.write(built(plan), [question(), question((40, 90), "And now?")], [MANIFEST])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_token_index": 259}),
        ({"connector": MlpConfig(depth=1), "image_fit": "pad"}, {"projector_hidden_act": "linear"}),
        ({"connector": IdentityConfig(), "image_fit": "squash"}, {"projector_hidden_act": "linear"}),
        ({"encoder": "siglip"}, {"vision_feature_select_strategy": "full", "image_seq_length": 16}),
        ({"encoder": "dinov2", "llm": "llama_tied"}, {"tie_word_embeddings": True}),
        ({"encoder_settings": {"select_feature": "cls_patch", "select_layer": -1}}, {"image_seq_length": 17}),
        ({"llm": "llama_padded", "exact_pixels": True}, {"image_token_index": 259}),
        ({"encoder_settings": {"select_layer": 1}}, {"vision_feature_layer": -3}),
    ],
    ids=["mlp", "linear", "identity", "siglip", "dinov2_tied", "cls_last", "padded_vocab", "first_layer"],
)
def test_transformers_says_the_same(
    make_plan: Callable[..., Plan], tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    agreement = exported(make_plan(**changes), tmp_path / "out")
    assert agreement.logits < 1e-4
    assert agreement.mean_pixels < 0.03
    assert len(agreement.answers) == 2
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert expected.items() <= config.items()
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"chat_template.jinja", "generation_config.json", "processor_config.json", "README.md"} <= names
    assert "preprocessor_config.json" in names
    assert not (tmp_path / ".out.unverified").exists()


def test_names_on_disk_are_those_that_older_loaders_read(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    from safetensors import safe_open

    exported(make_plan(), tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
        "multi_modal_projector.linear_1.bias",
        "vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight",
        "vision_tower.vision_model.pre_layrnorm.weight",
    } <= names


def test_the_placeholder_can_never_be_the_likeliest_token(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    state = llava_state(plan, built(plan), 260)
    head = state["language_model.lm_head.weight"]
    assert head.shape[0] == 260
    logits = torch.randn(500, 32) @ head.T
    assert not (logits.argmax(1) == 259).any()


def test_an_answer_that_ends_with_text_is_told_in_the_card(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plain = ChatTemplate(name="plain", system="", user="{turn}", assistant_prompt="", assistant_answer="{turn}\n",
                         user_text="drop", stop="\n")  # fmt: skip
    exported(make_plan(template=plain), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'stop_strings=["\\n"]' in card
    assert "owner/name" in card


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"connector": AveragePoolConfig()}, "connector"),
        ({"connector": MlpConfig(depth=3)}, "connector.depth"),
        ({"tiling": DynamicTiles()}, "processor.image_fit"),
        ({"template": ChatTemplate(name="drawn", prompts=("a", "b"))}, "template.prompts"),
    ],
)
def test_what_no_class_can_hold_is_refused_before_weights(
    make_plan: Callable[..., Plan], tmp_path: Path, changes: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Export(make_plan(**changes), tmp_path / "out").check()
    assert error.value.where == where


def test_a_folder_in_use_is_not_touched(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        Export(make_plan(), tmp_path).check()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("multi_modal_projector.linear_2.bias", "soft tokens differ"),
        ("language_model.model.layers.1.mlp.down_proj.weight", "logits differ from token 0"),
    ],
)
def test_a_wrong_folder_says_where_it_begins(
    make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, words: str
) -> None:
    def wrong(*args: Any) -> dict[str, torch.Tensor]:
        state = llava_state(*args)
        return {**state, broken: state[broken] + 0.5}

    monkeypatch.setattr("mmexp.hf.llava_form.llava_state", wrong)
    with pytest.raises(CheckpointError, match=words):
        exported(make_plan(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_pixels_are_found(
    make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmexp.hf import processor

    def other(transform: Any, exact: bool, made: Any = processor.build_image_processor) -> Any:
        result = made(transform, exact)
        result.image_mean = [0.0, 0.0, 0.0]
        return result

    monkeypatch.setattr("mmexp.hf.processor.build_image_processor", other)
    with pytest.raises(CheckpointError, match="pixels differ by"):
        exported(make_plan(), tmp_path / "out")


def test_large_models_are_written_in_shards(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    from mmexp.hf.base import save_state

    plan = make_plan()
    save_state(llava_state(plan, built(plan), 260), tmp_path, torch.float32, max_shard_size="100KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
