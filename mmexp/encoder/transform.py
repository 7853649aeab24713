"""From a picture of any size to the pixels that an encoder was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from PIL import Image

from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Fit = Literal["crop", "pad", "squash"]
Triple = tuple[float, float, float]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)


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

    def __call__(self, image: Image.Image) -> Tensor:
        square = self.square(image)
        values = np.asarray(square, dtype=np.float32) * np.float32(1 / 255)
        values = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def square(self, image: Image.Image) -> Image.Image:
        """The picture as RGB of size S x S, before normalisation."""
        image = image.convert("RGB")
        if self.fit == "pad":
            image = self._pad(image)
        if self.fit == "crop":
            return self._resize_and_crop(image)
        return image.resize((self.size_px, self.size_px), self.resample)

    def restore(self, values: Tensor) -> Image.Image:
        """The picture that float[3, S, S] shows: undoes the normalisation, for looking at it."""
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        pixels = ((values.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def _pad(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        side = max(width, height)
        square = Image.new("RGB", (side, side), tuple(int(channel * 255) for channel in self.mean))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        new = [self.size_px if side == short else int(self.size_px * side / short) for side in (width, height)]
        image = image.resize((new[0], new[1]), self.resample)
        left, top = (new[0] - self.size_px) // 2, (new[1] - self.size_px) // 2
        return image.crop((left, top, left + self.size_px, top + self.size_px))
