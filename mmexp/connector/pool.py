"""Average pooling over the patch grid, then a linear layer: the plainest way to have fewer soft tokens."""

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
class AveragePoolConfig:
    """Means over `factor` x `factor` patches, then E -> D; N = P / factor^2."""

    factor: int = 2
    """Side of the pooled square in patches; must divide both sides of the grid."""

    def num_soft_tokens(self, encoder: EncoderSpec) -> int:
        self._check(encoder)
        return encoder.grid[0] * encoder.grid[1] // self.factor**2

    def soft_grid(self, encoder: EncoderSpec) -> tuple[int, int] | None:
        return (encoder.grid[1] // self.factor, encoder.grid[0] // self.factor)

    def build(self, encoder: EncoderSpec, llm_width: int) -> AveragePool:
        self._check(encoder)
        require_llm(llm_width)
        return AveragePool(encoder.grid, self.factor, encoder.width, llm_width)

    def _check(self, encoder: EncoderSpec) -> None:
        rows, columns = encoder.grid
        if self.factor < 1 or rows % self.factor or columns % self.factor:
            raise ConfigError(
                f"{self.factor}",
                expected=f"a divisor of the encoder's grid {rows} x {columns}",
                where="connector.factor",
            )
        if encoder.num_prefix:
            raise ConfigError(
                "the encoder keeps its CLS token, which has no place in a grid",
                expected="patches only",
                where="connector",
                fix="encoder.select_feature=patch",
            )


class AveragePool(nn.Module):
    """See `AveragePoolConfig`."""

    def __init__(self, grid: tuple[int, int], factor: int, width: int, llm_width: int) -> None:
        super().__init__()
        self.grid = grid
        self.pool = nn.AvgPool2d(factor)
        self.linear = nn.Linear(width, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """float[M, P, E] to float[M, N, D]."""
        maps = features.transpose(1, 2).unflatten(2, self.grid)
        return self.linear(self.pool(maps).flatten(2).transpose(1, 2))
