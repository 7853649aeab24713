"""LLaVA's weights as the start of a stage: logits and answers equal transformers' own class on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mmexp.connector import MlpConfig
from mmexp.data import Collator
from mmexp.errors import CheckpointError
from mmexp.hf import load_foreign
from mmexp.hf.llava_import import llava_names
from mmexp.model import Plan

from .test_llava_export import built, exported, question


@pytest.fixture
def theirs(make_plan: Callable[..., Plan], tmp_path: Path) -> tuple[Any, Path]:
    """A LLaVA of transformers with weights of its own, and its folder; the table has rows for `<image>` and padding."""
    model: Any = make_plan().empty()
    encoder, llm = model.inputs["image"].encoder.model, model.llm.model
    text = {**llm.config.to_dict(), "vocab_size": 264}
    config = transformers.LlavaConfig(
        vision_config=encoder.config.to_dict(), text_config=text, image_token_index=259, image_seq_length=16
    )
    torch.manual_seed(5)
    llava = transformers.LlavaForConditionalGeneration(config).eval()
    for parameter in llava.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    llava.save_pretrained(tmp_path / "llava", max_shard_size="60KB")
    return llava, tmp_path / "llava"


def test_a_transformers_folder_gives_its_logits_and_answers(
    make_plan: Callable[..., Plan], theirs: tuple[Any, Path]
) -> None:
    llava, folder = theirs
    plan = make_plan()
    model = plan.build().eval()
    changed = load_foreign(model.parts(), folder)
    assert set(changed) == {"encoder", "connector", "llm"}
    item = plan.processor.encode_prompt(question())
    batch = Collator(pad_id=plan.tokenizer.pad_id, row="padded")([item])
    ids = torch.where(batch.slots["image"], 259, batch.input_ids)
    with torch.no_grad():
        ours = model.llm.logits(model(batch).hidden)
        reference = llava(input_ids=ids, pixel_values=batch.media["image"]).logits[..., :259]
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)
        embeds, _ = model.embed(batch)
        answer = model.llm.model.generate(inputs_embeds=embeds, max_new_tokens=8, do_sample=False, pad_token_id=0)
        expected = llava.generate(input_ids=ids, pixel_values=batch.media["image"], max_new_tokens=8, do_sample=False,
                                  pad_token_id=0, suppress_tokens=list(range(259, 264)))  # fmt: skip
    assert answer[0].tolist() == expected[0, ids.shape[1] :].tolist()


def original(llava: Any) -> dict[str, torch.Tensor]:
    """The same tensors under the names of the original program."""
    state = {}
    for name, tensor in llava.state_dict().items():
        name = name.replace("model.language_model.", "model.", 1)
        name = name.replace("model.vision_tower.", "model.vision_tower.vision_tower.vision_model.", 1)
        for ours, index in (("linear_1", "0"), ("linear_2", "2")):
            name = name.replace(f"model.multi_modal_projector.{ours}", f"model.mm_projector.{index}", 1)
        state[name] = tensor
    return state


def test_original_layouts_and_projector_files(
    make_plan: Callable[..., Plan], theirs: tuple[Any, Path], tmp_path: Path
) -> None:
    llava, folder = theirs
    state = original(llava)
    plan = make_plan()
    first, second, third = (plan.build() for _ in range(3))
    load_foreign(first.parts(), folder)
    torch.save(state, tmp_path / "whole.bin")
    load_foreign(second.parts(), tmp_path / "whole.bin")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    projector = {name: tensor for name, tensor in state.items() if "mm_projector" in name}
    torch.save(projector, tmp_path / "mm_projector.bin")
    assert load_foreign(third.parts(), tmp_path / "mm_projector.bin") == {
        "connector": {"0.weight", "0.bias", "2.weight", "2.bias"}
    }
    assert torch.equal(third.inputs["image"].connector[2].weight, state["model.mm_projector.2.weight"])
    linear = make_plan(connector=MlpConfig(depth=1)).build()
    one = {"model.mm_projector.weight": torch.ones(32, 32), "model.mm_projector.bias": torch.ones(32)}
    torch.save(one, tmp_path / "v1.bin")
    assert load_foreign(linear.parts(), tmp_path / "v1.bin") == {"connector": {"0.weight", "0.bias"}}


def test_our_own_export_comes_back_whole(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = make_plan(connector=MlpConfig(depth=1))
    exported(plan, tmp_path / "out")
    model = plan.build()
    load_foreign(model.parts(), tmp_path / "out")
    before = built(plan).state_dict()
    assert set(model.inputs["image"].connector.state_dict()) == {"0.weight", "0.bias"}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"connector": MlpConfig(depth=3)}, "4.weight is missing"),
        ({"encoder_settings": {"select_layer": -1}}, "vision_feature_layer -2"),
        ({"encoder": "siglip"}, "vision_config"),
    ],
)
def test_a_checkpoint_of_another_model_changes_nothing(
    make_plan: Callable[..., Plan], theirs: tuple[Any, Path], changes: dict[str, Any], words: str
) -> None:
    model = make_plan(**changes).build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        load_foreign(model.parts(), theirs[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_file_that_would_run_code_is_refused(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model.mm_projector.weight": Evil()}, tmp_path / "bad.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_foreign(make_plan().build().parts(), tmp_path / "bad.bin")
    assert not (tmp_path / "ran").exists()
    torch.save({"something.weight": torch.ones(1)}, tmp_path / "other.bin")
    with pytest.raises(CheckpointError, match="no known kind"):
        load_foreign(make_plan().build().parts(), tmp_path / "other.bin")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("base_model.model.model.mm_projector.2.bias", ("connector", "2.bias")),
        ("model.mm_projector.weight", ("connector", "0.weight")),
        ("multi_modal_projector.linear_2.weight", ("connector", "2.weight")),
        ("vision_tower.vision_model.pre_layrnorm.bias", ("encoder", "pre_layrnorm.bias")),
        ("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias", ("encoder", "pre_layrnorm.bias")),
        ("language_model.model.layers.0.mlp.up_proj.weight", ("llm", "layers.0.mlp.up_proj.weight")),
        ("model.language_model.norm.weight", ("llm", "norm.weight")),
        ("model.norm.weight", ("llm", "norm.weight")),
        ("language_model.lm_head.weight", ("head", "weight")),
        ("lm_head.weight", ("head", "weight")),
        ("model.image_newline", ("connector", "newline")),
        ("optimizer.step", None),
    ],
)
def test_names(name: str, found: tuple[str, str] | None) -> None:
    assert llava_names(name) == found
