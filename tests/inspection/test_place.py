"""A map is drawn where the encoder looked, and slots give back what their soft tokens had."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmexp.contracts import Box
from mmexp.data import Collator
from mmexp.inspection import overlay
from mmexp.inspection.place import Slots, inside, union, windows
from mmexp.model.splice import arrange
from mmexp.prompt import AnyRes, DynamicTiles
from tests.inspection.models import dotted, make_plan, make_sample

RULES: dict[str, dict[str, Any]] = {
    "crop": {"image_fit": "crop"},
    "pad": {"image_fit": "pad"},
    "squash": {"image_fit": "squash"},
    "tiles": {"tiling": DynamicTiles()},
    "anyres": {"tiling": AnyRes(grids=((1, 2), (2, 1), (2, 2)))},
    "anyres shrunk": {"tiling": AnyRes(grids=((1, 3), (3, 1), (2, 2)), max_views=1)},
}
PLACES = [((160, 80), (0.4, 0.8)), ((80, 200), (0.75, 0.55)), ((90, 90), (0.2, 0.3)), ((64, 50), (0.6, 0.2))]


@pytest.mark.parametrize(("size", "dot"), PLACES)
@pytest.mark.parametrize("rule", RULES)
def test_attention_to_the_patch_that_shows_a_dot_is_drawn_on_the_dot(
    rule: str, size: tuple[int, int], dot: tuple[float, float]
) -> None:
    plan, picture = make_plan(**RULES[rule]), dotted(size, dot)
    transform: Any = plan.transforms["image"]
    values = transform(picture)
    views = values[None] if values.dim() == 3 else values
    shown = windows(transform, size)
    assert len(shown) == len(views)
    seen = 0
    for pixels, window in zip(views, shown, strict=True):
        light = (pixels.mean(0) > 1).float().unfold(0, 14, 14).unfold(1, 14, 14).mean((2, 3))
        if not window[0] < dot[0] < window[2] or not window[1] < dot[1] < window[3]:
            continue
        seen += 1
        patch = int(light.argmax())
        heat = torch.zeros(16)
        heat[patch] = 1.0
        left, top, right, bottom = hot_box(np.asarray(overlay(picture, window, heat.view(4, 4), 1.0, 400)), window)
        near = 0.1 * max(size) / min(size)  # the dot may lie on a border between two patches
        assert left - near < dot[0] < right + near
        assert top - near < dot[1] < bottom + near
        assert right - left == pytest.approx((window[2] - window[0]) / 4, abs=0.03)
    assert seen


def hot_box(drawn: np.ndarray, window: Box) -> Box:
    """Where the strongest colour is, in shares of the picture."""
    rows, columns = np.nonzero((drawn[..., 0] > 220) & (drawn[..., 1] > 210))
    frame = union(window)
    height, width = drawn.shape[:2]
    across, down = frame[2] - frame[0], frame[3] - frame[1]
    return (
        frame[0] + across * columns.min() / width,
        frame[1] + down * rows.min() / height,
        frame[0] + across * (columns.max() + 1) / width,
        frame[1] + down * (rows.max() + 1) / height,
    )


def test_boxes_in_a_frame() -> None:
    window = (-0.5, 0.0, 1.5, 1.0)
    assert union(window) == window
    assert inside((0.0, 0.0, 1.0, 1.0), window) == (0.25, 0.0, 0.75, 1.0)
    assert union((0.25, 0.0, 0.75, 1.0)) == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("rule", RULES)
def test_slots_give_back_to_the_soft_tokens_that_are_in_them(rule: str) -> None:
    plan = make_plan(**RULES[rule])
    item = plan.processor.encode(make_sample(dotted((160, 80), (0.4, 0.8))))
    batch = Collator(pad_id=0, row="padded")([item])
    slots = Slots.of(batch, "image", 16)
    count = slots.num_views * 16
    assert slots.num_views == len(windows(plan.transforms["image"], (160, 80)))
    table = torch.eye(count).view(slots.num_views, 16, count)
    if "image" in batch.gather:
        table = arrange(table, batch.gather["image"], torch.zeros(count), batch.blend.get("image"))
    values = torch.rand(2, int(batch.slots["image"].sum()))
    torch.testing.assert_close(slots.spread(values).flatten(1), values @ table.view(-1, count))
    held = table.view(-1, count).gt(0)
    first = [int(column.nonzero()[0]) if column.any() else -1 for column in held.T]
    assert slots.first_slots() == first


def test_two_pictures_are_one_after_the_other() -> None:
    plan = make_plan(tiling=DynamicTiles())
    one, two = make_sample(dotted((160, 80), (0.4, 0.8))), make_sample(dotted((80, 80), (0.4, 0.8)))
    item = plan.processor.encode_prompt((*one.turns, two.turns[0]))
    slots = Slots.of(Collator(pad_id=0, row="padded")([item]), "image", 16)
    assert 16 * slots.num_views == sum(run.length for run in item.runs)
    assert slots.num_views == sum(item.views["image"])
    assert slots.first_slots() == list(range(16 * slots.num_views))
