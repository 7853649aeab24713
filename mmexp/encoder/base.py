"""The contract of an encoder: what the plan may ask before weights exist, and what the module does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmexp.contracts import EncoderSpec
    from mmexp.encoder.transform import Fit


class EncoderConfig(Protocol):
    """One encoder as data. `spec` and `transform` read no weights.

    An encoder whose last layers may train alone says so for the feature cache, which then keeps what comes before them:
    its config names the child in a class variable `trunk`, and its module has that child as `trunk` and the rest as
    `finish(output of trunk)`.
    """

    def spec(self) -> EncoderSpec:
        """Width and patch grid."""
        ...

    def transform(self, fit: Fit) -> Callable[[Any], Tensor]:
        """Picklable function from one raw medium to the values of one item; for images float32[3, S, S].

        For the feature cache it is a dataclass of plain values that does the same to a picture every time.
        """
        ...

    def build(self) -> nn.Module:
        """Module with `forward(values: float[M, ...]) -> float[M, P, E]`, weights loaded."""
        ...

    def empty(self) -> nn.Module:
        """The same module with random weights on the current default device; on `meta` it costs nothing."""
        ...
