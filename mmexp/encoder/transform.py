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
    exact: bool = True
    """Whether Pillow resizes, as the published code does. Otherwise torch does, six times faster; the bytes of real
    photos differ by at most 2 of 255 with crop and pad, by 0.3 on average with squash (experiments/data_throughput.md).
    """

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
        mean, std = _constants(self.mean, self.std)
        return self._pixels(image, size).contiguous().float().mul_(1 / 255).sub_(mean).div_(std)

    def square(self, image: Image.Image, size: Size | None = None) -> Image.Image:
        """The picture as RGB of size S x S, before normalisation; arguments as of a call."""
        return _to_image(self._pixels(image, size))

    def resize(self, image: Image.Image, new: Size, size: Size | None = None) -> Image.Image:
        """The whole picture in another size, by the same rule as the view; for those who cut views out of it."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        return _to_image(self._resized(image, new, size or image.size))

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

    def _pixels(self, image: Image.Image, size: Size | None) -> Tensor:
        """uint8[3, S, S]"""
        image = image if image.mode == "RGB" else image.convert("RGB")
        size = size or image.size
        if self.fit == "crop":
            new = self._cropped_from(size)
            left, top = (new[0] - self.size_px) // 2, (new[1] - self.size_px) // 2
            whole = self._resized(image, new, size)
            return whole[:, top : top + self.size_px, left : left + self.size_px]
        if self.fit == "pad":
            image = self._pad(image, size)
            size = image.size
        return self._resized(image, (self.size_px, self.size_px), size)

    def _resized(self, image: Image.Image, new: Size, size: Size) -> Tensor:
        """uint8[3, height, width]"""
        covered = _covered(image, size)
        if self.exact or covered is not None or self.resample != Image.Resampling.BICUBIC:
            image = image.resize(new, self.resample, box=covered)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if image.size == new:
            return pixels
        shape = (new[1], new[0])
        return torch.nn.functional.interpolate(pixels[None], shape, mode="bicubic", antialias=True)[0]


def _to_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def _covered(image: Image.Image, size: Size) -> Box | None:
    """The part of a picture decoded smaller that shows something: its last pixels may cover more than the whole has."""
    factor = round(size[0] / image.size[0])
    covered = (size[0] / factor, size[1] / factor)
    return None if covered == image.size else (0.0, 0.0, *covered)


@lru_cache(maxsize=16)
def _constants(mean: Triple, std: Triple) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
