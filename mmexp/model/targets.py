"""Which positions of a batch predict its supervised tokens: the only place where labels are shifted by one."""

from __future__ import annotations

from itertools import chain, repeat
from typing import TYPE_CHECKING

from mmexp.contracts import IGNORE, Batch

if TYPE_CHECKING:
    from torch import Tensor


def targets_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """int64[K] twice, places in the flattened batch: of the supervised tokens, and of what predicts each, ascending."""
    places = (batch.labels.flatten() != IGNORE).nonzero().squeeze(1)
    if batch.previous is None:
        return places, places - 1  # the first label of a row is never supervised, so no row reaches another
    rows, order = batch.previous[places].sort(stable=True)
    return places[order], rows


def owners_of(batch: Batch) -> Tensor:
    """int64[B * T] on the CPU: which of `batch.ids` each place belongs to; what several share, to the first of them."""
    import torch

    width = batch.labels.shape[1]
    owners = torch.zeros(batch.labels.numel(), dtype=torch.int64)
    number = 0
    counts = chain(*batch.followers) if batch.followers else repeat(0)
    for (row, start, end), num_followers in zip(batch.spans(), counts, strict=False):
        owners[row * width + start : row * width + end] = number
        number += num_followers == 0
    return owners
