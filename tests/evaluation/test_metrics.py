"""Normalisation of short answers, and boxes."""

from __future__ import annotations

import doctest

import pytest

from mmexp.contracts import Sample, Text, Turn
from mmexp.errors import DataError
from mmexp.evaluation import caption, grounding, vqa
from mmexp.evaluation.base import targets
from mmexp.evaluation.grounding import iou, parse_box, target_box
from mmexp.evaluation.vqa import VqaConfig, normalize
from mmexp.prompt import BoxText


def _sample(reply: str, **meta: object) -> Sample:
    turns = (Turn(role="user", parts=(Text(text="?"),)), Turn(role="assistant", parts=(Text(text=reply),)))
    return Sample(id="s0", turns=turns, meta=meta)


@pytest.mark.parametrize("module", [caption, grounding, vqa])
def test_docstrings(module: object) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("text", "same"),
    [(" Yes. ", "yes"), ("The red  circle", "red circle"), ("an apple", "apple"), ("A", "a"), ("3", "3"), ("", "")],
)
def test_normalize(text: str, same: str) -> None:
    assert normalize(text) == same


def test_any_target_counts() -> None:
    graded = VqaConfig(splits={}).grade([_sample("two", targets=["two", "2"])] * 3, ["2", "Two.", "three"])
    assert graded.scores == (1.0, 1.0, 0.0)
    assert targets(_sample("two", targets="2")) == ("2",)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.12, 0.34, 0.56, 0.78]", (0.12, 0.34, 0.56, 0.78)),
        ("It is at (0,.5,1,1.0).", (0, 0.5, 1, 1)),
        ("[1, 2] then [0.1, 0.1, 0.2, 0.2]", (0.1, 0.1, 0.2, 0.2)),
        ("[0.5, 0.5, 0.2, 0.9]", None),
        ("[12, 30, 50, 70]", None),
        ("[0.1, 0.2, 0.3]", None),
        ("left", None),
    ],
)
def test_parse_box(text: str, box: tuple[float, ...] | None) -> None:
    assert parse_box(text) == box


def test_iou() -> None:
    assert iou((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert iou((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0
    assert iou((0, 0, 0.5, 0.5), (0.25, 0, 0.75, 0.5)) == pytest.approx(1 / 3)


def test_target_box_is_named_when_wrong() -> None:
    assert target_box(_sample("[0.1, 0.1, 0.2, 0.2]"), BoxText()) == (0.1, 0.1, 0.2, 0.2)
    with pytest.raises(DataError, match="sample s0"):
        target_box(_sample("there", box=[10, 20, 30, 40]), BoxText())
