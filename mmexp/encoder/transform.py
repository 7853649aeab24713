"""From a picture of any size to the pixels that an encoder was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from PIL import Image

from mmexp.contracts import Box, Size
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Fit = Literal["crop", "pad", "squash"]
Triple = tuple[float, float, float]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
DETAIL = 2
"""A JPEG that is decoded smaller keeps at least so many pixels a side for each one of the view."""


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Resizes a PIL image to a square and normalises it; the result is float32[3, S, S].

    Source: LLaVA `llava/mm_utils.py` (expand2square), transformers `CLIPImageProcessor` for the two other steps.
    """

    size_px: int
    """S"""
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    resample: int = Image.Resampling.BICUBIC
    fit: Fit = "crop"
    """How a picture that is not square becomes one: `crop` resizes the shorter side and cuts the centre (LLaVA-1.5
    stage 1), `pad` puts it on a square of the mean colour (stage 2), `squash` changes its proportions."""

    def __post_init__(self) -> None:
        if self.fit not in get_args(Fit):
            raise ConfigError(f"{self.fit!r}", expected="crop, pad or squash", where="processor.image_fit")

    def __call__(self, image: Image.Image, size: Size | None = None, num_media: int = 1) -> Tensor:
        """The values that the encoder sees.

        Args:
            image: Of any size and mode.
            size: Size of the whole picture where `image` was decoded smaller (see `reduction`).
            num_media: Pictures of the conversation; a single view does not depend on it.
        """
        pixels = np.asarray(self.square(image, size))
        values = np.empty((3, self.size_px, self.size_px), dtype=np.float32)
        for channel, table in enumerate(_tables(self.mean, self.std)):
            np.take(table, pixels[..., channel], out=values[channel])
        return torch.from_numpy(values)

    def square(self, image: Image.Image, size: Size | None = None) -> Image.Image:
        """The picture as RGB of size S x S, before normalisation; arguments as of a call."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        size = size or image.size
        if self.fit == "pad":
            image = self._pad(image, size)
            size = image.size
        if self.fit == "crop":
            return self._resize_and_crop(image, size)
        return image.resize((self.size_px, self.size_px), self.resample, box=_covered(image, size))

    def window(self, size: Size, num_media: int = 1) -> Box:
        """What part of a picture of this size the view shows, in shares of the picture; beyond 0 to 1 it is padding.

        The map from shares of the picture to shares of the view is affine: `(x - left) / (right - left)`.
        """
        width, height = size
        if self.fit == "squash":
            return (0.0, 0.0, 1.0, 1.0)
        if self.fit == "pad":
            side = max(size)
            left, top = (side - width) // 2, (side - height) // 2
            return (-left / width, -top / height, (side - left) / width, (side - top) / height)
        new = self._cropped_from(size)
        left, top = (new[0] - self.size_px) // 2, (new[1] - self.size_px) // 2
        right, bottom = left + self.size_px, top + self.size_px
        return (left / new[0], top / new[1], right / new[0], bottom / new[1])

    def reduction(self, size: Size, num_media: int = 1) -> int:
        """By which of 1, 2, 4 and 8 a picture of this size may be decoded smaller: at least `DETAIL` times as many
        pixels a side stay as the view has, and the sides of a padded one must divide evenly."""
        for factor in (8, 4, 2):
            if self._enough(size, factor):
                return factor
        return 1

    def restore(self, values: Tensor) -> Image.Image:
        """The picture that float[3, S, S] shows: undoes the normalisation, for looking at it."""
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        pixels = ((values.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def _enough(self, size: Size, factor: int) -> bool:
        if self.fit == "pad":
            side = max(size)
            sides = (*size, *((side - length) // 2 for length in size), side)
            return side >= DETAIL * factor * self.size_px and not any(length % factor for length in sides)
        return min(size) >= DETAIL * factor * self.size_px

    def _pad(self, image: Image.Image, size: Size) -> Image.Image:
        factor = size[0] // image.size[0]
        side = max(size)
        left, top = ((side - length) // 2 // factor for length in size)
        colour = tuple(int(channel * 255) for channel in self.mean)
        square = Image.new("RGB", (side // factor, side // factor), colour)
        square.paste(image, (left, top))
        return square

    def _cropped_from(self, size: Size) -> Size:
        """The size of the whole picture of which the crop takes the centre."""
        short = min(size)
        width, height = (self.size_px if side == short else int(self.size_px * side / short) for side in size)
        return width, height

    def _resize_and_crop(self, image: Image.Image, size: Size) -> Image.Image:
        new = self._cropped_from(size)
        image = image.resize(new, self.resample, box=_covered(image, size))
        left, top = (new[0] - self.size_px) // 2, (new[1] - self.size_px) // 2
        return image.crop((left, top, left + self.size_px, top + self.size_px))


def _covered(image: Image.Image, size: Size) -> Box | None:
    """The part of a picture decoded smaller that shows something: its last pixels may cover more than the whole has."""
    if image.size == size:
        return None
    factor = round(size[0] / image.size[0])
    return (0.0, 0.0, size[0] / factor, size[1] / factor)


@lru_cache(maxsize=16)
def _tables(mean: Triple, std: Triple) -> tuple[np.ndarray, ...]:
    """Per channel the normalised value of each of the 256 byte values, in float32 as the published code computes it."""
    scaled = np.arange(256, dtype=np.float32) * np.float32(1 / 255)
    return tuple((scaled - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True))
