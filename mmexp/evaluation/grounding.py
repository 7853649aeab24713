"""Finding what a phrase refers to: boxes written as text, compared by intersection over union."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, ClassVar, Literal

from mmexp.contracts import Box, Region, Sample
from mmexp.errors import ConfigError, DataError
from mmexp.evaluation.base import BenchmarkConfig, Graded, Grader, answer, group_by_type, question_type
from mmexp.prompt import BoxText

_NUMBER = r"\s*(-?\d*\.?\d+)\s*"
_BOX = re.compile(r"[\[(]" + ",".join([_NUMBER] * 4) + r"[\])]")


@dataclass(frozen=True, kw_only=True)
class GroundingConfig(BenchmarkConfig):
    """Referring expression to box: right when the IoU with the true box is at least 0.5.

    Boxes are compared in the picture, wherever the answer's numbers were relative to. The true box is `meta.box`, else
    the region of the answer, else the one written in it, read as a prediction is. An answer without a readable box
    counts as wrong with IoU 0; `cut_off` is the share of true boxes that a crop hides in part, which no answer can
    reach. Boxes hardly ever repeat, so the majority baseline answers the median box of each question type.
    """

    primary: ClassVar[str] = "accuracy_iou50"

    notation: Literal["template", "data"] = "template"
    """Who wrote the boxes of the answers that the model learned: the template (`template.region`, in the frame of
    `processor.box_frame`), or the rows themselves as text, decimals `[left, top, right, bottom]` of the picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.notation not in ("template", "data"):
            raise ConfigError(f"{self.notation!r}", expected="template or data", where="evaluation.*.notation")

    def grader(self, boxes: BoxText) -> Grader:
        return _Grader(boxes if self.notation == "template" else _Decimals())

    def grade(self, samples: Sequence[Sample], predictions: Sequence[str]) -> Graded:
        return self.grader(BoxText()).grade(samples, predictions)


@dataclass(frozen=True)
class _Grader:
    boxes: BoxText | _Decimals

    def grade(self, samples: Sequence[Sample], predictions: Sequence[str]) -> Graded:
        pairs = list(zip(samples, predictions, strict=True))
        true = [target_box(sample, self.boxes) for sample in samples]
        found = [self.boxes.read(text, sample, medium_of(sample)) for sample, text in pairs]
        ious = [iou(one, other) if one else 0.0 for one, other in zip(found, true, strict=True)]
        cut = [self._is_cut(box, sample) for box, sample in zip(true, samples, strict=True)]
        return Graded(
            scores=tuple(float(value >= 0.5) for value in ious),
            metrics={"mean_iou": fmean(ious), "unparsable": fmean(box is None for box in found)}
            | ({"cut_off": fmean(cut)} if any(cut) else {}),
            details=tuple(
                {"iou": round(value, 4), "boxes": {"target": list(t), "predicted": list(p) if p else None}}
                | ({"cut_off": True} if hidden else {})
                | self._written(sample, t)
                for sample, value, t, p, hidden in zip(samples, ious, true, found, cut, strict=True)
            ),
        )

    def majority(self, samples: Sequence[Sample]) -> list[str]:
        groups = group_by_type(samples)
        boxes: dict[str, Box] = {}
        for kind, group in groups.items():
            left, top, right, bottom = zip(*(target_box(sample, self.boxes) for sample in group), strict=True)
            boxes[kind] = median(left), median(top), median(right), median(bottom)
        return [self.boxes.write(boxes[question_type(sample)], sample, medium_of(sample)) or "" for sample in samples]

    def _is_cut(self, box: Box, sample: Sample) -> bool:
        seen = self.boxes.visible(box, sample, medium_of(sample))
        return seen is None or iou(seen, box) < 1 - 1e-6

    def _written(self, sample: Sample, box: Box) -> dict[str, Any]:
        """The target as text, for an answer that is a region."""
        return {} if answer(sample) else {"target": self.boxes.write(box, sample, medium_of(sample)) or ""}


class _Decimals:
    """Boxes as rows have them that write them as text: nothing of the model's."""

    def read(self, text: str, sample: Sample, medium: int = 0) -> Box | None:
        return parse_box(text)

    def write(self, box: Box, sample: Sample, medium: int = 0) -> str | None:
        return "[" + ", ".join(f"{side:.4f}" for side in box) + "]"

    def visible(self, box: Box, sample: Sample, medium: int = 0) -> Box | None:
        return box


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


def medium_of(sample: Sample) -> int:
    """The medium that the answer's region lies in, by its number in reading order; 0 for an answer in words."""
    return next((part.medium for part in _regions(sample)), 0)


def target_box(sample: Sample, boxes: BoxText | _Decimals) -> Box:
    """The true box, in shares of the picture.

    Args:
        sample: `meta.box`, or the region or text of its closing turn, says it.
        boxes: Reads one that stands in text.

    Raises:
        DataError: nothing holds one.
    """
    given = sample.meta.get("box")
    if given:
        box = parse_box(str(list(given)))
    else:
        box = next((part.boxes[0] for part in _regions(sample)), None)
        box = box or boxes.read(answer(sample), sample)
    if box is None:
        raise DataError(
            f"box {given!r}, answer {answer(sample)!r}",
            expected="[left, top, right, bottom], each 0 to 1, left < right and top < bottom",
            where=f"{sample.dataset or 'evaluation data'}, sample {sample.id}",
            fix="divide pixel boxes by the image's width and height",
        )
    return box


def _regions(sample: Sample) -> list[Region]:
    return [part for part in sample.turns[-1].parts if isinstance(part, Region)] if sample.turns else []
