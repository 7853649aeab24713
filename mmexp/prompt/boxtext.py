"""Boxes as a model writes them in answers: the template's notation, in the frame that its training boxes had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mmexp.contracts import Box, Region, Sample
from mmexp.prompt.boxes import to_picture, to_view
from mmexp.prompt.region import RegionFormat

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
"""The frame of the picture itself."""


def _picture(sample: Sample, medium: int) -> Box:
    return WHOLE


@dataclass(frozen=True, kw_only=True)
class BoxText:
    """Between boxes of a picture and the text of an answer, both ways. `Processor.boxes` gives that of a model."""

    form: RegionFormat = field(default_factory=RegionFormat)
    """The notation."""
    frame: Callable[[Sample, int], Box] = _picture
    """From a sample and the number of a medium in it to what its boxes are written relative to, in shares of the
    picture; beyond 0 to 1 it is padding."""

    def read(self, text: str, sample: Sample, medium: int = 0) -> Box | None:
        """The first box in a text, as shares of the picture; None when there is none.

        One that lies in the padding has no area left.

        Raises:
            BadMediaError: the picture's size is needed and cannot be read.
        """
        found = self.form.first(text)
        return None if found is None else to_picture(found, self.frame(sample, medium))

    def read_all(self, text: str, sample: Sample, medium: int = 0) -> tuple[Box, ...]:
        """Every box in a text that has an area in the picture, in reading order, as shares of it.

        Raises:
            BadMediaError: as `read`.
        """
        boxes = (to_picture(box, self.frame(sample, medium)) for box in self.form.parse(text))
        return tuple(box for box in boxes if box[0] < box[2] and box[1] < box[3])

    def write(self, box: Box, sample: Sample, medium: int = 0) -> str | None:
        """What a model is taught to answer for a box of the picture; None where a crop leaves nothing of it.

        Raises:
            BadMediaError: as `read`.
            DataError: the box reaches out of the picture.
        """
        seen = to_view(box, self.frame(sample, medium))
        return None if seen is None else self.form.text(Region(boxes=(seen,), medium=medium))

    def visible(self, box: Box, sample: Sample, medium: int = 0) -> Box | None:
        """What a crop leaves of a box, in shares of the picture: no answer can say more. None for nothing.

        Raises:
            BadMediaError: as `read`.
        """
        frame = self.frame(sample, medium)
        seen = to_view(box, frame)
        return None if seen is None else to_picture(seen, frame)
