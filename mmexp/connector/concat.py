"""Neighbouring patches side by side, then one linear layer: fewer soft tokens, and nothing of the features is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from mmexp.connector.base import require_llm
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.contracts import EncoderSpec


@dataclass(frozen=True, kw_only=True)
class ConcatLinearConfig:
    """`length` patches that follow each other in reading order are one vector, then `length` E -> D; N = P / length.

    They are neighbours in a row, and no square. A CLS token before the patches is dropped.

    Source: Vision-CAIR/MiniGPT-4 @ d94738a minigpt4/models/minigpt4.py (`has_qformer: False`) and minigpt_v2.py.
    """

    length: int = 4
    """Patches of one soft token; divides their number."""

    def num_soft_tokens(self, encoder: EncoderSpec) -> int:
        patches = encoder.num_patches - encoder.num_prefix
        if self.length < 1 or patches % self.length:
            raise ConfigError(f"{self.length}", expected=f"a divisor of the encoder's {patches} patches",
                              where="connector.length")  # fmt: skip
        return patches // self.length

    def soft_grid(self, encoder: EncoderSpec) -> tuple[int, int] | None:
        rows, columns = encoder.grid
        return None if columns % self.length else (columns // self.length, rows)

    def build(self, encoder: EncoderSpec, llm_width: int) -> ConcatLinear:
        self.num_soft_tokens(encoder)
        require_llm(llm_width)
        return ConcatLinear(encoder.num_prefix, self.length, encoder.width, llm_width)


class ConcatLinear(nn.Module):
    """See `ConcatLinearConfig`.

    Args:
        num_prefix: Positions before the patches, which are dropped.
        length: Patches of one soft token.
        width: E
        llm_width: D
    """

    def __init__(self, num_prefix: int, length: int, width: int, llm_width: int) -> None:
        super().__init__()
        self.num_prefix, self.length = num_prefix, length
        self.proj = nn.Linear(length * width, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """float[M, P, E] to float[M, N, D]."""
        patches = features[:, self.num_prefix :]
        return self.proj(patches.reshape(len(patches), -1, self.proj.in_features))
