"""Finding what a phrase refers to: boxes written as text, compared by intersection over union."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, ClassVar

from mmexp.contracts import Sample
from mmexp.errors import DataError
from mmexp.evaluation.base import BenchmarkConfig, Graded, answer, group_by_type, question_type

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the image's width and height, 0 to 1."""

_NUMBER = r"\s*(-?\d*\.?\d+)\s*"
_BOX = re.compile(r"[\[(]" + ",".join([_NUMBER] * 4) + r"[\])]")


@dataclass(frozen=True, kw_only=True)
class GroundingConfig(BenchmarkConfig):
    """Referring expression to box: right when the IoU with the true box is at least 0.5.

    The true box is `meta.box`, else the one written in the answer. An answer without a readable box counts as wrong
    with IoU 0. Boxes hardly ever repeat, so the majority baseline answers the median box of each question type.
    """

    primary: ClassVar[str] = "accuracy_iou50"

    def grade(self, samples: Sequence[Sample], predictions: Sequence[str]) -> Graded:
        true = [target_box(sample) for sample in samples]
        found = [parse_box(text) for text in predictions]
        ious = [iou(one, other) if one else 0.0 for one, other in zip(found, true, strict=True)]
        details: list[Mapping[str, Any]] = [
            {"iou": round(value, 4), "boxes": {"target": list(t), "predicted": list(p) if p else None}}
            for value, t, p in zip(ious, true, found, strict=True)
        ]
        return Graded(
            scores=tuple(float(value >= 0.5) for value in ious),
            metrics={"mean_iou": fmean(ious), "unparsable": fmean(box is None for box in found)},
            details=tuple(details),
        )

    def majority(self, samples: Sequence[Sample]) -> list[str]:
        groups = group_by_type(samples)
        boxes = {kind: [target_box(sample) for sample in group] for kind, group in groups.items()}
        text = {
            kind: "[" + ", ".join(f"{median(side):.4f}" for side in zip(*group, strict=True)) + "]"
            for kind, group in boxes.items()
        }
        return [text[question_type(sample)] for sample in samples]


def parse_box(text: str) -> Box | None:
    """The first box in a text, or None when there is none that lies in the image and has an area.

    >>> parse_box("It is at [0.12, 0.34, 0.56, 0.78].")
    (0.12, 0.34, 0.56, 0.78)
    """
    match = _BOX.search(text)
    if match is None:
        return None
    left, top, right, bottom = (float(number) for number in match.groups())
    return (left, top, right, bottom) if 0 <= left < right <= 1 and 0 <= top < bottom <= 1 else None


def iou(one: Box, other: Box) -> float:
    """Common area over joint area, 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    joint = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common
    return common / joint if joint > 0 else 0.0


def target_box(sample: Sample) -> Box:
    """The true box.

    Raises:
        DataError: Neither `box` nor the answer holds one.
    """
    given = sample.meta.get("box")
    box = parse_box(str(list(given)) if given else answer(sample))
    if box is None:
        raise DataError(
            f"box {given!r}, answer {answer(sample)!r}",
            expected="[left, top, right, bottom], each 0 to 1, left < right and top < bottom",
            where=f"{sample.dataset or 'evaluation data'}, sample {sample.id}",
            fix="divide pixel boxes by the image's width and height",
        )
    return box
