"""The contract of an encoder: what the plan may ask before weights exist, and what the module does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmexp.contracts import EncoderSpec
    from mmexp.encoder.transform import Fit


class EncoderConfig(Protocol):
    """One encoder as data. `spec` and `transform` read no weights."""

    def spec(self) -> EncoderSpec:
        """Width and patch grid."""
        ...

    def transform(self, fit: Fit) -> Callable[[Any], Tensor]:
        """Picklable function from one raw medium to the values of one item; for images float32[3, S, S]."""
        ...

    def build(self) -> nn.Module:
        """Module with `forward(values: float[M, ...]) -> float[M, P, E]`, weights loaded."""
        ...

    def empty(self) -> nn.Module:
        """The same module with random weights on the current default device; on `meta` it costs nothing."""
        ...
