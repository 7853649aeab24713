"""The contract of a connector: patch features of width E become N soft tokens of the LLM's width D."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmexp.contracts import EncoderSpec, InstructionSpec


class ConnectorConfig(Protocol):
    """One connector as data. It sees the encoder's spec, never its module.

    One whose output for a picture hardly changes while its last layers train says so for the feature cache, as an
    encoder does: `trunk` names the child, and its module has that child as `trunk` and the rest as `finish`.

    One whose soft tokens attend to the patches can show it: its module has `query_maps`, which takes what `forward`
    takes and gives float32[M, layers, heads, N, P], the attention of each soft token's query to each patch.
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


@contextmanager
def before_calls(modules: Iterable[nn.Module], on_call: Callable[..., Any]) -> Iterator[None]:
    """While it is open, `on_call(module, *args)` is told what each of the modules is called with, call by call."""

    def tell(module: nn.Module, args: tuple[Any, ...]) -> None:
        on_call(module, *args)

    handles = [module.register_forward_pre_hook(tell) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(width)) in float32: float[..., R, width] and float[..., S, width] to float32[..., R, S]."""
    scores = query.float() @ key.float().transpose(-1, -2)
    return (scores * query.shape[-1] ** -0.5).softmax(-1)
