"""Prompts about the same media, answered together: what they have in common is encoded and read once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mmexp.llm.base import Beginning
from mmexp.model.splice import left_pad

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """B prompts, each of which begins like a row of a batch and goes on with words of its own."""

    owners: tuple[int, ...]
    """Per prompt the row that it begins like; every row has a prompt."""
    lengths: tuple[int, ...]
    """Per row how many of its positions are the beginning."""
    ids: tuple[Tensor, ...]
    """Per prompt int64[t], t at least 1: what stands behind the beginning."""

    def lay_out(self, embeds: Tensor, embed: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Beginning]:
        """The prompts as `Llm.generate` takes them.

        Args:
            embeds: float[G, T, D] of the rows, content at the left.
            embed: The LLM's embedding of tokens.

        Returns:
            float[B, T', D], int64[B, T'], and what is common.
        """
        device, lengths = embeds.device, [len(ids) for ids in self.ids]
        padded = torch.nn.utils.rnn.pad_sequence(list(self.ids), batch_first=True).to(device)
        begin, begin_mask = left_pad(embeds, self.lengths)
        end, end_mask = left_pad(embed(padded), lengths)
        owners = torch.tensor(self.owners, device=device)
        first = torch.tensor([self.owners.index(row) for row in range(len(self.lengths))], device=device)
        rows = torch.cat([begin[owners], end.to(begin.dtype)], dim=1)
        mask = torch.cat([begin_mask[owners], end_mask], dim=1)
        return rows, mask, Beginning(num_columns=begin.shape[1], first=first, owners=owners)
