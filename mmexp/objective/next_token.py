"""Next-token prediction on the supervised positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional

from mmexp.contracts import IGNORE, Batch, Losses
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from mmexp.model import MultimodalModel, Plan


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """Cross-entropy of the next token, summed over supervised tokens.

    Source: LLaVA, section 4.2: the answer tokens are predicted from the image and everything before them.
    """

    def build(self, plan: Plan) -> NextToken:
        return NextToken()


class NextToken(nn.Module):
    """The only place where labels are shifted by one; logits exist at supervised positions only."""

    def requires(self, plan: Plan) -> None:
        """Raises ConfigError when there is no LLM."""
        if plan.spec.width == 0:
            raise ConfigError("no LLM", expected="an LLM, which predicts the tokens", where="llm",
                              fix="another objective, or an LLM")  # fmt: skip

    def forward(self, model: MultimodalModel, batch: Batch) -> Losses:
        """Loss sum and number of supervised tokens, named `lm`."""
        hidden = model(batch).hidden
        labels = batch.labels[:, 1:]
        chosen = labels != IGNORE
        logits = model.llm.logits(hidden[:, :-1][chosen])
        loss = functional.cross_entropy(logits.float(), labels[chosen], reduction="sum")
        return Losses(sums={"lm": loss}, counts={"lm": batch.num_supervised})
