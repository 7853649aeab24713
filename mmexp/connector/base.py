"""The contract of a connector: patch features of width E become N soft tokens of the LLM's width D."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from mmexp.contracts import EncoderSpec


class ConnectorConfig(Protocol):
    """One connector as data. It sees the encoder's spec, never its module."""

    def num_soft_tokens(self, encoder: EncoderSpec) -> int:
        """N for one item of that grid.

        Raises:
            ConfigError: the connector cannot work on this grid.
        """
        ...

    def soft_grid(self, encoder: EncoderSpec) -> tuple[int, int] | None:
        """Columns and rows of the N soft tokens as they lie in the picture, row by row; None when they have no place.

        Only layouts with rows ask for it (AnyRes), so a connector without this method works with all others.
        """
        ...

    def build(self, encoder: EncoderSpec, llm_width: int) -> nn.Module:
        """Module with `forward(features: float[M, P, E]) -> float[M, N, D]`."""
        ...
