"""Layer-wise learning rates: every parameter's rate against a plain computation from its name."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from mmexp.connector import MlpConfig
from mmexp.encoder import OpenClipConfig, TinyVisionConfig
from mmexp.engine import AdamWCosineConfig
from mmexp.errors import ConfigError
from mmexp.tuning import parameter_groups

LR, DECAY = 1e-3, 0.5


def open_clip_tower() -> nn.Module:
    config = OpenClipConfig(path="laion/x", model="ViT-S-16", class_token=False, from_scratch=True, image_size_px=32)
    return config.build()


def clip_tower() -> nn.Module:
    """Six blocks of CLIP as transformers writes it, with a norm behind them."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from mmexp.encoder.hf_vision import HfVision

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    return HfVision(CLIPVisionModel(CLIPVisionConfig(num_hidden_layers=6, **sizes)), num_blocks=6, drop=1)


def rates(groups: list[dict]) -> dict[int, float]:
    return {id(parameter): group["lr"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize(
    ("tower", "block", "behind", "depth"),
    [
        (open_clip_tower, r"resblocks\.(\d+)\.", "ln_post", 12),
        (clip_tower, r"encoder\.layers\.(\d+)\.", "post_layernorm", 6),
    ],
)
def test_blocks_learn_the_slower_the_earlier_they_are(tower, block, behind, depth):
    module = tower()
    found = rates(parameter_groups({"encoder": module}, LR, {}, 0.1, {"encoder": DECAY}))
    assert len(found) == len(list(module.parameters()))
    for name, parameter in module.named_parameters():
        match = re.search(block, name)
        power = 0 if behind in name else depth - int(match[1]) if match else depth + 1
        assert found[id(parameter)] == pytest.approx(LR * DECAY**power), name
    assert min(found.values()) == pytest.approx(LR * DECAY ** (depth + 1))


def test_a_part_may_have_a_peak_of_its_own_and_others_stay_as_they_are():
    parts = {"encoder": clip_tower(), "connector": MlpConfig().build(TinyVisionConfig().spec(), 8)}
    groups = parameter_groups(parts, LR, {"encoder": 2e-4}, 0.1, {"encoder": DECAY})
    by_name = {group["name"]: group for group in groups}
    assert by_name["encoder/block5"]["lr"] == pytest.approx(1e-4)
    assert by_name["encoder/block5"]["weight_decay"] == 0.1
    assert by_name["encoder/block5/no_decay"]["weight_decay"] == 0.0
    assert by_name["encoder/no_decay"]["lr"] == 2e-4
    assert by_name["connector"]["lr"] == LR
    plain = parameter_groups(parts, LR, {"encoder": 2e-4}, 0.1)
    assert parameter_groups(parts, LR, {"encoder": 2e-4}, 0.1, {"encoder": 1.0}) == plain
    assert [group["name"] for group in plain] == ["encoder", "encoder/no_decay", "connector", "connector/no_decay"]


def test_frozen_blocks_have_no_group():
    module = clip_tower()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("layers.5." in name)
    groups = parameter_groups({"encoder": module}, LR, {}, 0.1, {"encoder": DECAY})
    assert [group["name"] for group in groups] == ["encoder/block5", "encoder/block5/no_decay"]


def test_the_schedule_keeps_the_proportions():
    groups = parameter_groups({"encoder": clip_tower()}, LR, {}, 0.0, {"encoder": DECAY})
    before = [group["lr"] for group in groups]
    optimizer, schedule = AdamWCosineConfig(min_lr_ratio=0.1).build(groups, 10, 0.2)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    factors = [now["lr"] / lr for now, lr in zip(optimizer.param_groups, before, strict=True)]
    assert max(factors) == pytest.approx(min(factors))
    assert 0.1 < factors[0] < 1


def test_parts_without_blocks_and_parts_that_do_not_train_are_refused_together():
    encoder, connector = clip_tower().requires_grad_(False), nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"Linear has no list of blocks.*\n.*\n.*stage.layer_decay.connector"):
        parameter_groups({"connector": connector}, LR, {}, 0.0, {"connector": DECAY})
    with pytest.raises(ConfigError) as error:
        parameter_groups({"encoder": encoder, "connector": connector}, LR, {"encoder": LR}, 0.0, {"encoder": DECAY})
    assert "stage.lr_by_part" in str(error.value)
    assert "stage.layer_decay" in str(error.value)


def test_a_step_moves_early_blocks_less():
    """Adam's first step is the learning rate itself."""
    module = clip_tower()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    groups = parameter_groups({"encoder": module}, LR, {}, 0.0, {"encoder": DECAY})
    optimizer, _ = AdamWCosineConfig().build(groups, 10, 0.0)
    module(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in module.named_parameters()}
    for index in range(6):
        expected = LR * DECAY ** (6 - index)
        assert moved[f"model.encoder.layers.{index}.mlp.fc1.weight"] == pytest.approx(expected, rel=1e-3)
