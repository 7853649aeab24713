"""Boxes as text, both ways: how a template writes a `Region`, and how boxes are read back from an answer."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from mmexp.contracts import Box, Region
from mmexp.errors import ConfigError, DataError
from mmexp.prompt.format import Piece, check_format, controls_of, parse_format

_SIDES = ("x1", "y1", "x2", "y2")
_TOLERANCE = 1e-6
_NUMBER = r"\s*(-?\d+(?:\.\d+)?|-?\.\d+)\s*"


@dataclass(frozen=True, kw_only=True)
class RegionFormat:
    """How a region is written: the words for it, its boxes, and the numbers of a box. Formats: see `parse_format`.

    Sources: Qwen-VL README; MiniGPT-v2 section 3 and Vision-CAIR/MiniGPT-4 @ d94738a coco_dataset.py;
    OpenGVLab/InternVL @ 2410d1d eval/refcoco/evaluate_grounding.py; CogVLM section 2.2.
    """

    with_phrase: str = "{phrase} {boxes}"
    """A region with words for it."""
    alone: str = "{boxes}"
    """A region without words."""
    box: str = "[{x1}, {y1}, {x2}, {y2}]"
    """One box: left, top, right, bottom."""
    between: str = ", "
    """Between the boxes of one phrase."""
    grid: int | None = None
    """Numbers are whole parts of this many (Qwen-VL 1000, MiniGPT-v2 100); null for shares of one as decimals."""
    largest: int | None = None
    """The largest whole number there is, where that is not `grid` (999 for [0, 1000)); larger ones are set to it."""
    rounding: Literal["down", "nearest"] = "nearest"
    """How a share becomes a number of the grid."""
    digits: int = 2
    """Decimals of a share; on a grid the digits that a number is filled up to with zeros (CogVLM 3, otherwise 0)."""
    divisor: float | None = None
    """What numbers are divided by when they are read back; null for `grid`. Qwen-VL's own evaluation takes 999."""

    def __post_init__(self) -> None:
        """Raises ConfigError when a format cannot be parsed or a number makes no sense."""
        where = "template.region"
        check_format(self.with_phrase, f"{where}.with_phrase", {"phrase": True, "boxes": True}, switches=False)
        check_format(self.alone, f"{where}.alone", {"boxes": True}, switches=False)
        check_format(self.box, f"{where}.box", dict.fromkeys(_SIDES, True), switches=False)
        check_format(self.between, f"{where}.between", {}, switches=False)
        order = [piece.value for piece in parse_format(self.box) if piece.kind == "value"]
        if order != list(_SIDES):
            raise ConfigError(f"{self.box!r}", expected="{x1}, {y1}, {x2}, {y2} in this order", where=f"{where}.box")
        for name, least in (("grid", 1), ("largest", 1), ("digits", 0), ("divisor", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{value}", expected=f"at least {least}, or null", where=f"{where}.{name}")
        if self.rounding not in ("down", "nearest"):
            raise ConfigError(f"{self.rounding!r}", expected="down or nearest", where=f"{where}.rounding")

    @property
    def controls(self) -> tuple[str, ...]:
        """Control tokens that these formats write."""
        return controls_of(self.with_phrase, self.alone, self.box, self.between)

    def number(self, share: float) -> str:
        """One side of a box as written; a share a hair outside of 0 to 1 counts as its edge.

        Raises:
            DataError: outside of the picture.
        """
        if not -_TOLERANCE <= share <= 1 + _TOLERANCE:  # also catches nan
            raise DataError(
                f"a box with a side at {share}",
                expected="shares of the picture's width and height, 0 to 1",
                fix="divide pixels by the width and height; cut boxes that reach out of the picture",
            )
        share = min(max(share, 0.0), 1.0)
        if self.grid is None:
            return f"{share:.{self.digits}f}"
        # No hair is added before rounding down: 29 of 100 pixels on a grid of 100 is 28, as int() makes it published.
        whole = math.floor(share * self.grid + (0.5 if self.rounding == "nearest" else 0.0))
        return f"{min(whole, self.grid if self.largest is None else self.largest):0{max(self.digits, 1)}d}"

    def write(self, region: Region) -> tuple[Piece, ...]:
        """The region as literal text and control tokens.

        Raises:
            DataError: no box, sides outside of the picture or in the wrong order.
        """
        if not region.boxes:
            raise DataError("a region without a box", expected="at least one box", fix="write the phrase as plain text")
        pieces: list[Piece] = []
        for piece in parse_format(self.with_phrase if region.phrase else self.alone):
            if piece == Piece("value", "phrase"):
                pieces.append(Piece("text", region.phrase))
            elif piece.kind == "value":
                for index, box in enumerate(region.boxes):
                    pieces += [*(parse_format(self.between) if index else ()), *self._box(box)]
            else:
                pieces.append(piece)
        return tuple(pieces)

    def text(self, region: Region) -> str:
        """The region as one string, control tokens by their names; raises as `write`."""
        return "".join(piece.value for piece in self.write(region))

    def _box(self, box: Box) -> list[Piece]:
        left, top, right, bottom = box
        if left > right or top > bottom:
            raise DataError(
                f"the box {box}",
                expected="left, top, right, bottom with left <= right and top <= bottom",
                fix="COCO's boxes are left, top, width, height: add the first two to the last two",
            )
        sides: dict[str, str] = dict(zip(_SIDES, map(self.number, box), strict=True))
        return [Piece("text", sides[p.value]) if p.kind == "value" else p for p in parse_format(self.box)]

    def parse(self, text: str) -> tuple[Box, ...]:
        """Every box written in a text, in reading order, as shares of the picture.

        Control tokens may be missing (decoding drops them) and spaces may differ. What is no box, reaches out of the
        picture or has no area is left out: an answer may hold anything.

        >>> RegionFormat(box="{{<{x1}><{y1}><{x2}><{y2}>}}", grid=100).parse("<p>a dog</p> {<12><34><56><78>}")
        ((0.12, 0.34, 0.56, 0.78),)
        """
        found = (self._read(match) for match in _pattern(self.box).finditer(text))
        return tuple(box for box in found if box is not None)

    def first(self, text: str) -> Box | None:
        """The first thing in a text that is written like a box, as `parse`; None when it is none. Answers are judged
        by it: a later box does not help."""
        match = _pattern(self.box).search(text)
        return None if match is None else self._read(match)

    def _read(self, match: re.Match[str]) -> Box | None:
        divisor = self.divisor or self.grid or 1
        left, top, right, bottom = (float(number) / divisor for number in match.groups())
        inside = 0 <= left < right <= 1 + _TOLERANCE and 0 <= top < bottom <= 1 + _TOLERANCE
        return (left, top, min(right, 1.0), min(bottom, 1.0)) if inside else None


@lru_cache(maxsize=64)
def _pattern(box: str) -> re.Pattern[str]:
    """What finds a box written in this format: control tokens may be missing, space may stand anywhere."""
    written = ""
    for piece in parse_format(box):
        if piece.kind == "value":
            written += _NUMBER
        elif piece.kind == "control":
            written += f"(?:{re.escape(piece.value.rstrip('?'))})?"
        else:
            written += r"\s*".join(re.escape(part) for part in piece.value.split())
    return re.compile(written)
