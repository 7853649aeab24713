"""Maps of soft tokens made smaller: which soft tokens a slot is mixed from, decided on the CPU from sizes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmexp.prompt.tiles import Grid

if TYPE_CHECKING:
    from torch import Tensor

NUM_TAPS = 4
"""Soft tokens that a slot is mixed from at most: two rows and two columns."""


def shrink(places: Tensor, new: Grid) -> tuple[Tensor, Tensor]:
    """A map resized bilinearly, without antialiasing, as `torch.nn.functional.interpolate` does it.

    Args:
        places: int64[rows, columns, 2], view and place of each soft token.
        new: Columns and rows of the result.

    Returns:
        int64[new rows, new columns, 4, 2] and the share of each in the mix, float32[new rows, new columns, 4].
    """
    import torch

    high, high_share = _pairs(places.shape[0], new[1])
    wide, wide_share = _pairs(places.shape[1], new[0])
    taps = places[high[:, None, :, None], wide[None, :, None, :]]
    shares = high_share[:, None, :, None] * wide_share[None, :, None, :]
    return taps.flatten(2, 3), shares.flatten(2).to(torch.float32)


def alone(places: Tensor) -> tuple[Tensor, Tensor]:
    """Slots that hold one soft token each, int64[..., 2], in the form of `shrink`: all of the mix is the first tap."""
    import torch

    taps = places[..., None, :].expand(*places.shape[:-1], NUM_TAPS, 2)
    shares = torch.zeros(taps.shape[:-1])
    shares[..., 0] = 1.0
    return taps, shares


def _pairs(old: int, new: int) -> tuple[Tensor, Tensor]:
    """For each of the new places the two old ones beside it, int64[new, 2], and their shares, float64[new, 2]."""
    import torch

    centre = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).clamp(min=0)
    low = centre.floor().long().clamp(max=old - 1)
    share = centre - low
    return torch.stack([low, (low + 1).clamp(max=old - 1)], 1), torch.stack([1 - share, share], 1)
