"""The contract of a connector: patch features of width E become N soft tokens of the LLM's width D."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from mmexp.contracts import EncoderSpec, InstructionSpec


class ConnectorConfig(Protocol):
    """One connector as data. It sees the encoder's spec, never its module.

    One whose output for a picture hardly changes while its last layers train says so for the feature cache, as an
    encoder does: `trunk` names the child, and its module has that child as `trunk` and the rest as `finish`.
    """

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

    def instruction(self) -> InstructionSpec | None:
        """What it reads beside the features; None where they are all. A connector without this method reads nothing.

        The module of one that reads has a true `reads_instruction`, and its `forward` takes int64[M, L] and bool[M, L]
        behind the features.
        """
        ...

    def build(self, encoder: EncoderSpec, llm_width: int) -> nn.Module:
        """Module with `forward(features: float[M, P, E]) -> float[M, N, D]`.

        Raises:
            ConfigError: the widths do not go together, or `llm_width` is 0 (no LLM) and this connector needs one.
        """
        ...


def require_llm(llm_width: int) -> None:
    """Raises ConfigError for a connector that only leads into an LLM when there is none."""
    if llm_width == 0:
        raise ConfigError(
            "this connector leads into an LLM, and there is none",
            expected="an LLM, or a connector that is of use without one",
            where="connector",
            fix="connector=qformer_full, or another llm",
        )
