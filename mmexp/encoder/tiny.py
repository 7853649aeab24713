"""A two-layer random encoder in CLIP's format: what tests use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmexp.contracts import EncoderSpec
from mmexp.encoder.hf_vision import HfVision
from mmexp.encoder.transform import Fit, ImageTransform

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPVisionModel


@dataclass(frozen=True, kw_only=True)
class TinyVisionConfig:
    """Random weights from a fixed seed, so that two builds are the same model."""

    width: int = 32
    """E"""
    image_size_px: int = 28
    """Side of the input square."""
    patch_size_px: int = 14
    """Side of a patch."""
    seed: int = 0
    """Seed of the random weights."""

    def spec(self) -> EncoderSpec:
        side = self.image_size_px // self.patch_size_px
        return EncoderSpec(width=self.width, grid=(side, side), item_shape=(3, self.image_size_px, self.image_size_px))

    def transform(self, fit: Fit) -> Callable[[Any], Tensor]:
        return ImageTransform(size_px=self.image_size_px, fit=fit)

    def build(self) -> HfVision:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.empty()

    def empty(self) -> HfVision:
        """The module with random weights on the current default device."""
        return HfVision(self._fresh(), num_blocks=1, drop=1)

    def whole(self) -> Any:
        """The transformers model with both blocks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self._fresh()

    def _fresh(self) -> CLIPVisionModel:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=self.image_size_px,
            patch_size=self.patch_size_px,
        )
        return CLIPVisionModel(config)
