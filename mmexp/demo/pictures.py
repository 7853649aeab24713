"""Pictures as the page shows them: small, upright, with the boxes that an answer names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmexp.contracts import Box, Sample
from mmexp.demo.desk import media_of
from mmexp.errors import DataError
from mmexp.prompt.image import load_image
from mmexp.serve.prompts import bad_picture

if TYPE_CHECKING:
    from PIL import Image

    from mmexp.prompt import BoxText

_SIDE = 480
_COLOURS = ("#ffb000", "#5aa9ff", "#ff6fae", "#39d0a0", "#c7a2ff", "#ffffff")
_HALO = "#141413"


def shown(picture: bytes) -> Image.Image:
    """The picture with its longer side at 480 pixels. Raises ApiError when it cannot be read."""
    try:
        image = load_image(picture)
    except DataError as error:
        raise bad_picture(error) from None
    scale = _SIDE / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def marked(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy with boxes (shares of the picture) as bright lines between dark ones, seen on any colour."""
    from PIL import ImageDraw

    copy = image.copy()
    draw = ImageDraw.Draw(copy)
    for number, (left, top, right, bottom) in enumerate(boxes):
        width, height = copy.width - 1, copy.height - 1
        place = (round(left * width), round(top * height), round(right * width), round(bottom * height))
        draw.rectangle(_larger(place, 2), outline=_HALO, width=8)
        draw.rectangle(place, outline=_COLOURS[number % len(_COLOURS)], width=4)
    return copy


def boxes_of(text: str, sample: Sample, notation: BoxText) -> tuple[bytes, tuple[Box, ...]] | None:
    """The last picture of a conversation and the boxes in it that an answer names; None for none of either."""
    media = media_of(sample)
    boxes = notation.read_all(text, sample, len(media) - 1) if media else ()
    return (media[-1].source, boxes) if boxes else None


def _larger(place: tuple[int, int, int, int], by: int) -> tuple[int, int, int, int]:
    return place[0] - by, place[1] - by, place[2] + by, place[3] + by
