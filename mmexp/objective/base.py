"""The contract of an objective: the loss as a small object around a model that does not know it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.contracts import Batch, Losses
    from mmexp.model import MultimodalModel, Plan


class ObjectiveConfig(Protocol):
    """One objective as data."""

    def build(self, plan: Plan) -> Any:
        """The objective: an `nn.Module` when it owns heads, with `__call__` as `Objective`."""
        ...


def alone(rows: Tensor, with_gradient: bool = False) -> tuple[Tensor, int]:
    """The `Gather` of one rank: nothing is joined."""
    return rows, 0


class Embedding(Protocol):
    """What an objective further has when its heads compare images with texts."""

    matches: bool
    """Whether `match` can judge pairs."""

    def features(self, model: MultimodalModel, batch: Batch) -> Tensor:
        """float[B, P, E] of a batch of one image a sample."""
        ...

    def texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """int64[B, T] of the texts' tokens and bool[B, T], false at padding."""
        ...

    def embed_image(self, model: MultimodalModel, features: Tensor) -> Tensor:
        """float[B, P, E] to unit vectors float[B, Q, W]."""
        ...

    def embed_text(self, model: MultimodalModel, ids: Tensor, mask: Tensor) -> Tensor:
        """int64[B, T] and bool[B, T] to unit vectors float[B, W]."""
        ...

    def match(self, model: MultimodalModel, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """float[B, 2]: logits of not belonging together, and of belonging together."""
        ...


class Objective(Protocol):
    """What the training module calls on every micro-batch.

    One that needs other ranks has an attribute `gather`, at first `alone`; the engine puts the real one there.
    """

    def requires(self, plan: Plan) -> None:
        """Raises ConfigError before weights load when this model cannot have this loss."""
        ...

    def __call__(self, model: MultimodalModel, batch: Batch) -> Losses:
        """Sums and counts of every named part."""
        ...
