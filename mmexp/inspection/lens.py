"""Soft tokens and hidden states as words.

Source: nostalgebraist (2020), "interpreting GPT: the logit lens", for hidden states through final norm and output head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from mmexp.inspection.trace import tail

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.llm import CausalLlm

_ROWS = 64
"""Positions whose logits exist at a time."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """The k nearest words of each of K positions, the nearest first."""

    ids: Tensor
    """int64[K, k]"""
    values: Tensor
    """float32[K, k]: probability, or cosine"""


@torch.no_grad()
def by_head(llm: CausalLlm, hidden: Tensor, vocab_size: int, k: int) -> Words:
    """The likeliest words of hidden states float[K, D], as if no layer were left, with their probabilities.

    Args:
        llm: In eval mode.
        hidden: Of any layer.
        vocab_size: Only the first so many ids; others have no word.
        k: Words of each.
    """

    def score(rows: Tensor) -> Tensor:
        return llm.logits(tail(llm.model.get_decoder(), rows))[:, :vocab_size].float().softmax(-1)

    return _top(hidden, score, k)


@torch.no_grad()
def by_embedding(llm: CausalLlm, soft: Tensor, vocab_size: int, k: int) -> Words:
    """The words whose embeddings point most in the direction of soft tokens float[K, D], with the cosines."""
    ids = torch.arange(vocab_size, device=soft.device)
    table = functional.normalize(llm.embed(ids).float(), dim=-1)
    return _top(soft, lambda rows: functional.normalize(rows.float(), dim=-1) @ table.T, k)


def word(tokenizer: Any, token_id: int) -> str:
    """A token as it reads; one that is not visible by its name."""
    text = tokenizer.decode([token_id]).strip()
    return text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token_id))


def _top(rows: Tensor, score: Callable[[Tensor], Tensor], k: int) -> Words:
    found = [score(part).topk(k) for part in rows.split(_ROWS)]
    return Words(ids=torch.cat([each.indices for each in found]).cpu(),
                 values=torch.cat([each.values for each in found]).cpu())  # fmt: skip
