"""Rows that an embedding table and an output head get for new tokens: weights of their own, so the old stay as is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.nn import functional

from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class GrownEmbedding(nn.Embedding):
    """An embedding with the ids from `first` on in a matrix of their own; `weight` is the old table, as it was."""

    rows: nn.Parameter
    """float32[new tokens, D]"""
    first: int

    @classmethod
    def of(cls, table: nn.Embedding, rows: nn.Parameter, first: int) -> Self:
        """Takes the place of `table` and shares its weight."""
        with torch.device("meta"):
            grown = cls(table.num_embeddings, table.embedding_dim, padding_idx=table.padding_idx)
        grown.weight, grown.rows, grown.first = table.weight, rows, first
        return grown

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in torch
        place = input - self.first
        new = (place >= 0) & (place < len(self.rows))
        old = super().forward(input.masked_fill(new, 0))
        rows = functional.embedding(place.masked_fill(~new, 0), self.rows)
        return torch.where(new.unsqueeze(-1), rows.to(old.dtype), old)


class GrownHead(nn.Linear):
    """An output head whose logits from `first` on have a matrix of their own; `weight` is the old head, as it was."""

    rows: nn.Parameter
    """float32[new tokens, D]"""
    first: int

    @classmethod
    def of(cls, head: nn.Linear, rows: nn.Parameter, first: int) -> Self:
        """Takes the place of `head` and shares its weight and bias."""
        with torch.device("meta"):
            grown = cls(head.in_features, head.out_features, bias=head.bias is not None)
        grown.weight, grown.rows, grown.first = head.weight, rows, first
        if head.bias is not None:
            grown.bias = head.bias
        return grown

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in torch
        old = super().forward(input)
        new = functional.linear(input, self.rows.to(input.dtype))
        return torch.cat([old[..., : self.first], new.to(old.dtype), old[..., self.first + len(self.rows) :]], dim=-1)


def grow(model: Any, first: int, count: int) -> None:
    """Gives a transformers model rows for `count` new tokens with the ids from `first` on, in place.

    A new row starts as the mean of the rows in front of it, as InternVL and transformers do. Where the table has rows
    for these ids already (some are padded), the new ones take their place.

    Raises:
        ConfigError: the table or the head is of a kind that does more than look up or multiply.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(table) is not nn.Embedding or type(head) is not nn.Linear:
        raise ConfigError(
            f"{model.config.model_type} has a {type(table).__name__} and a {type(head).__name__}",
            expected="a plain embedding table and a plain output head, which rows for new tokens can be added to",
            where="template.new_tokens",
            fix="template.new_tokens=[], or another LLM",
        )
    rows = _rows(table.weight, first, count)
    tied = head.weight is table.weight
    model.set_input_embeddings(GrownEmbedding.of(table, rows, first))
    model.set_output_embeddings(GrownHead.of(head, rows if tied else _rows(head.weight, first, count), first))
    text = model.config.get_text_config()
    text.vocab_size = max(text.vocab_size, first + count)


def new_rows(module: nn.Module) -> list[nn.Parameter]:
    """The weights of new tokens in a part, each once."""
    found = (each.rows for each in module.modules() if isinstance(each, GrownEmbedding | GrownHead))
    return list({id(rows): rows for rows in found}.values())


def _rows(weight: Tensor, first: int, count: int) -> nn.Parameter:
    mean = weight[:first].detach().float().mean(0)
    return nn.Parameter(mean.expand(count, -1).clone())
