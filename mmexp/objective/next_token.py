"""Next-token prediction on the supervised positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from mmexp.contracts import Batch, Losses
from mmexp.errors import ConfigError
from mmexp.model.targets import targets_of

if TYPE_CHECKING:
    from mmexp.model import MultimodalModel, Plan


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """Cross-entropy of the next token, summed over supervised tokens.

    Source: LLaVA, section 4.2: the answer tokens are predicted from the image and everything before them.
    """

    chunk_rows: int | None = 256
    """Positions whose logits exist at a time, with gradients made in the forward pass; null makes them all at once.
    The result is the same up to rounding."""
    prune_last_layer: bool = True
    """Whether the LLM's last layer leaves out positions that predict nothing; LLMs that cannot do it go the long way.
    The result is the same up to rounding."""
    shares_beginnings: ClassVar[bool] = True
    """It takes batches of processor.row=shared."""

    def build(self, plan: Plan) -> NextToken:
        """Raises ConfigError for `chunk_rows` below 1."""
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise ConfigError(f"{self.chunk_rows}", expected="a whole number from 1 on, or null",
                              where="objective.chunk_rows", fix="objective.chunk_rows=256")  # fmt: skip
        return NextToken(self.chunk_rows, self.prune_last_layer)


class NextToken(nn.Module):
    """Labels are shifted by one (`targets_of`); logits exist at supervised positions only."""

    def __init__(self, chunk_rows: int | None = 256, prune_last_layer: bool = True) -> None:
        super().__init__()
        self.chunk_rows, self.prune_last_layer = chunk_rows, prune_last_layer

    def requires(self, plan: Plan) -> None:
        """Raises ConfigError when there is no LLM."""
        if plan.spec.width == 0:
            raise ConfigError("no LLM", expected="an LLM, which predicts the tokens", where="llm",
                              fix="another objective, or an LLM")  # fmt: skip

    def forward(self, model: MultimodalModel, batch: Batch) -> Losses:
        """Loss sum and number of supervised tokens, named `lm`."""
        places, rows = targets_of(batch)
        hidden = model(batch, rows).hidden if self.prune_last_layer else model(batch).hidden.flatten(0, 1)[rows]
        loss = model.llm.head.loss(hidden, batch.labels.flatten()[places], self.chunk_rows)
        return Losses(sums={"lm": loss}, counts={"lm": batch.num_supervised})
