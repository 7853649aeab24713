"""Boxes of rows: pixels to shares, at once where the size of the picture is known, else when it is opened."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmexp.contracts import Box, Region, Turn
from mmexp.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112
"""EXIF's tag; from 5 on width and height are exchanged."""


def as_share(box: Any, width: Any, height: Any, form: str = "xyxy") -> Box:
    """A pixel box as shares of its picture; what sticks out by rounding is cut.

    Args:
        box: Four numbers.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        form: `xyxy` for corners, `xywh` for corner and size.

    Raises:
        DataError: no four numbers, an empty box, or one that lies outside of the picture by more than a pixel.
    """
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(_is_number(side) for side in box):
        raise DataError(f"a box is {repr(box)[:60]}", expected="four numbers")
    if not (_is_number(width) and _is_number(height) and width > 0 and height > 0):
        raise DataError(f"a picture of {width!r} x {height!r}", expected="`width` and `height` in pixels")
    left, top, right, bottom = box if form == "xyxy" else (box[0], box[1], box[0] + box[2], box[1] + box[3])
    slack = 1.0 if max(width, height) > 1 else 1e-3
    fits = -slack <= left < right <= width + slack and -slack <= top < bottom <= height + slack
    if not fits:
        raise DataError(
            f"the box {list(box)} in a picture of {width} x {height}",
            expected="left < right and top < bottom, inside of the picture",
            fix=f"are the boxes really {form}, and of this picture size?",
        )
    shares = (left / width, top / height, right / width, bottom / height)
    return tuple(min(1.0, max(0.0, share)) for share in shares)  # type: ignore[return-value]  # four of them


@dataclass(frozen=True, kw_only=True)
class PixelRegion(Region):
    """Boxes in pixels of a picture whose size is not known before it is opened."""

    def as_shares(self, source: Any, where: str) -> Region:
        """The same boxes as shares, by the upright size of the picture.

        Raises:
            DataError: the picture cannot be opened, or a box lies outside of it.
        """
        width, height = _upright_size(source, where)
        try:
            boxes = tuple(as_share(box, width, height) for box in self.boxes)
        except DataError as error:
            raise DataError(error.found, expected=error.expected, where=where, fix=error.fix) from error
        return Region(boxes=boxes, phrase=self.phrase, medium=self.medium)


def with_shares(turns: Sequence[Turn], where: str) -> tuple[Turn, ...]:
    """The turns with pixel boxes made shares of their pictures, which may stand behind them.

    Raises:
        DataError: as `PixelRegion.as_shares`.
    """
    if not any(isinstance(part, PixelRegion) for turn in turns for part in turn.parts):
        return tuple(turns)
    sources = [medium.source for turn in turns for medium in turn.media]
    return tuple(
        replace(
            turn,
            parts=tuple(
                part.as_shares(sources[part.medium], where) if isinstance(part, PixelRegion) else part
                for part in turn.parts
            ),
        )
        for turn in turns
    )


def _upright_size(source: Any, where: str) -> tuple[int, int]:
    """Width and height from the header, turned as EXIF says."""
    from PIL import Image

    try:
        if isinstance(source, Image.Image):
            return _turned(source)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return _turned(image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the size of the picture cannot be read ({error})", where=where) from error


def _turned(image: Image.Image) -> tuple[int, int]:
    is_turned = image.getexif().get(_ORIENTATION, 1) >= 5
    return (image.height, image.width) if is_turned else image.size


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
