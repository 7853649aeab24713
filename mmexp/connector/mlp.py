"""Connectors that keep one soft token per patch: linear (LLaVA), MLP (LLaVA-1.5) and identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from mmexp.connector.base import require_llm
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from mmexp.contracts import EncoderSpec


@dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """`depth` linear layers with biases and exact GELU between them: E -> D, then D -> D.

    Source: LLaVA `multimodal_projector/builder.py`: depth 1 is LLaVA's linear layer, depth 2 LLaVA-1.5's
    `mlp2x_gelu`. The modules are an `nn.Sequential`, so the keys are `0.*` and `2.*` as in `mm_projector.bin`.
    """

    depth: int = 2
    """Number of linear layers, at least 1."""

    def num_soft_tokens(self, encoder: EncoderSpec) -> int:
        return encoder.num_patches

    def soft_grid(self, encoder: EncoderSpec) -> tuple[int, int] | None:
        return None if encoder.num_prefix else (encoder.grid[1], encoder.grid[0])

    def build(self, encoder: EncoderSpec, llm_width: int) -> nn.Module:
        if self.depth < 1:
            raise ConfigError(f"{self.depth}", expected="at least 1", where="connector.depth")
        require_llm(llm_width)
        layers: list[nn.Module] = [nn.Linear(encoder.width, llm_width)]
        for _ in range(self.depth - 1):
            layers += [nn.GELU(), nn.Linear(llm_width, llm_width)]
        return nn.Sequential(*layers)


@dataclass(frozen=True, kw_only=True)
class IdentityConfig:
    """Features as they are: the baseline that asks whether a connector is needed at all. Needs E = D."""

    def num_soft_tokens(self, encoder: EncoderSpec) -> int:
        return encoder.num_patches

    def soft_grid(self, encoder: EncoderSpec) -> tuple[int, int] | None:
        return None if encoder.num_prefix else (encoder.grid[1], encoder.grid[0])

    def build(self, encoder: EncoderSpec, llm_width: int) -> nn.Module:
        require_llm(llm_width)
        if encoder.width != llm_width:
            raise ConfigError(
                f"encoder width {encoder.width}, LLM width {llm_width}",
                expected="equal widths, since identity changes nothing",
                where="connector",
                fix="connector=linear",
            )
        return nn.Identity()
