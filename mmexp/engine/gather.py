"""Rows of all ranks for objectives that compare samples of different ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def gather_rows(rows: Tensor, with_gradient: bool = False) -> tuple[Tensor, int]:
    """The `Gather` of the process group; with one process, or without a group, nothing is joined.

    All ranks must call it in the same order.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows, 0
    shapes = _shapes(rows)
    numbers = [shape[0] for shape in shapes]
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    collect = _Gathered.apply if with_gradient else _all_gather
    gathered = collect(_fill(rows if with_gradient else rows.detach(), largest))
    joined = torch.cat([part[:number] for part, number in zip(gathered, numbers, strict=True)])
    return joined, sum(numbers[: distributed.get_rank()])


def _shapes(rows: Tensor) -> list[list[int]]:
    shape = torch.tensor(rows.shape, device=rows.device)
    return [each.tolist() for each in _all_gather(shape)]


def _fill(rows: Tensor, shape: list[int]) -> Tensor:
    """Zeros behind every dimension up to `shape`."""
    missing = [want - have for want, have in zip(shape, rows.shape, strict=True)]
    return functional.pad(rows, [size for want in reversed(missing) for size in (0, want)]).contiguous()


def _all_gather(tensor: Tensor) -> tuple[Tensor, ...]:
    is_bool = tensor.dtype == torch.bool
    sent = tensor.to(torch.uint8) if is_bool else tensor
    parts = [torch.empty_like(sent) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, sent)
    return tuple(part.bool() if is_bool else part for part in parts)


class _Gathered(torch.autograd.Function):
    """All ranks' tensors; backward gives each rank the sum of what all ranks ask of its own.

    Source: salesforce/LAVIS @ 506965b lavis/models/base_model.py, the gradient of `all_gather_with_grad`.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> tuple[Tensor, ...]:
        return _all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = torch.stack(gradients)
        distributed.all_reduce(total)
        return total[distributed.get_rank()]
