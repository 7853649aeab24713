"""Boxes through image transforms: from shares of the picture to shares of what the encoder sees, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mmexp.contracts import Box, Region, Turn
from mmexp.errors import DataError


class OutsideViewError(DataError):
    """A box lies in what a crop cuts away. Training leaves its sample out by a counted rule."""


def to_view(box: Box, window: Box) -> Box | None:
    """A box of the picture as shares of a view, cut at the view's edges; None when nothing of it is visible.

    Args:
        box: Shares of the picture.
        window: What the view shows, in shares of the picture; beyond 0 to 1 it is padding.

    >>> to_view((0.5, 0.25, 1.0, 0.75), (0.0, -0.5, 1.0, 1.5))
    (0.5, 0.375, 1.0, 0.625)
    """
    left, top, right, bottom = window
    width, height = right - left, bottom - top
    mapped = ((box[0] - left) / width, (box[1] - top) / height, (box[2] - left) / width, (box[3] - top) / height)
    if not (_overlap(box[0], box[2], left, right) and _overlap(box[1], box[3], top, bottom)):
        return None
    x0, y0, x1, y1 = (min(max(side, 0.0), 1.0) for side in mapped)
    return x0, y0, x1, y1


def _overlap(low: float, high: float, start: float, end: float) -> bool:
    """Whether a side of a box lies in a side of a window; one without length does when it is inside."""
    return max(low, start) < min(high, end) if low < high else start <= low <= end


def to_picture(box: Box, window: Box) -> Box:
    """The inverse of `to_view`, cut at the picture's edges (what a model answers may lie in the padding).

    >>> to_picture((0.5, 0.375, 1.0, 0.625), (0.0, -0.5, 1.0, 1.5))
    (0.5, 0.25, 1.0, 0.75)
    """
    left, top, right, bottom = window
    width, height = right - left, bottom - top
    mapped = (left + box[0] * width, top + box[1] * height, left + box[2] * width, top + box[3] * height)
    x0, y0, x1, y1 = (min(max(side, 0.0), 1.0) for side in mapped)
    return x0, y0, x1, y1


def has_regions(turns: Sequence[Turn]) -> bool:
    """Whether any turn holds boxes."""
    return any(isinstance(part, Region) for turn in turns for part in turn.parts)


def map_regions(turns: Sequence[Turn], window_of: Callable[[int], Box]) -> tuple[Turn, ...]:
    """The turns with the boxes of every `Region` in the frame of the view.

    Args:
        turns: A conversation, boxes in shares of the pictures.
        window_of: What the view of a medium shows, by its number in reading order.

    Raises:
        OutsideViewError: nothing of a box is visible.
        DataError: a region of a medium that the conversation does not have.
    """
    count = sum(len(turn.media) for turn in turns)

    def mapped(region: Region) -> Region:
        check_medium(region.medium, count)
        window = window_of(region.medium)
        boxes = tuple(to_view(box, window) for box in region.boxes)
        for box, seen in zip(region.boxes, boxes, strict=True):
            if seen is None:
                raise _outside(region, box, window)
        return replace(region, boxes=tuple(box for box in boxes if box is not None))

    return tuple(
        replace(turn, parts=tuple(mapped(part) if isinstance(part, Region) else part for part in turn.parts))
        for turn in turns
    )


def check_medium(number: int, count: int) -> None:
    """Raises DataError when a conversation with `count` media has none of this number."""
    if not 0 <= number < count:
        raise DataError(f"a box in medium {number}", expected=f"a medium below {count}, counted from 0",
                        fix="check which picture the row's boxes lie in")  # fmt: skip


def _outside(region: Region, box: Box, window: Box) -> OutsideViewError:
    def shown(one: Box) -> str:
        return "[" + ", ".join(f"{side:.3f}" for side in one) + "]"

    return OutsideViewError(
        f"nothing of the box {shown(box)} ({region.phrase or 'no phrase'}) is in the view",
        expected=f"boxes inside {shown(window)}, the part of the picture that the encoder sees",
        fix="processor.image_fit=pad or squash, which show the whole picture",
    )
