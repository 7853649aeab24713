"""How much of the spread of a figure goes with each thing that was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NUM_SHUFFLES = 2000
_NUM_BINS = 4
METHOD = (
    "The share of the variance over runs that lies between the means of a setting's values (main effects of an "
    "analysis of variance; settings with many numbers in four equal parts). By chance: the 95th percentile of the same "
    "share after shuffling; what does not exceed it cannot be told from luck. Interactions are not counted, and where "
    "two settings were varied together both get the credit."
)


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Of one thing that was varied."""

    name: str
    share: float
    """Of the variance, 0 to 1."""
    by_chance: float
    """95th percentile of the share after shuffling."""


def importances(values: Sequence[float], varied: Mapping[str, Sequence[str]]) -> list[Importance]:
    """Main effects, the largest first; empty where the figure does not vary or there are fewer than four runs.

    Args:
        values: One figure for each run.
        varied: Name to one setting for each run.
    """
    y = np.asarray(values, dtype=float)
    if len(y) < 4 or np.ptp(y) == 0:
        return []
    shuffles = np.random.default_rng(0).permuted(np.tile(y, (_NUM_SHUFFLES, 1)), axis=1)
    found = []
    for name, settings in varied.items():
        levels = _levels(settings)
        share = float(_share_between(y[None], levels)[0])
        chance = float(np.percentile(_share_between(shuffles, levels), 95))
        found.append(Importance(name=name, share=share, by_chance=chance))
    return sorted(found, key=lambda one: -one.share)


def _levels(settings: Sequence[str]) -> NDArray[np.intp]:
    """A whole number for each run: equal settings, or equal parts of many different numbers."""
    numbers = _numbers(settings)
    distinct = len(set(settings))
    if numbers is None or distinct <= max(_NUM_BINS, len(settings) // 3):
        return np.unique(np.asarray(settings), return_inverse=True)[1]
    ranks = np.searchsorted(np.sort(numbers), numbers)
    return ranks * _NUM_BINS // len(settings)


def _numbers(settings: Sequence[str]) -> NDArray[np.float64] | None:
    try:
        return np.asarray([float(text) for text in settings])
    except ValueError:
        return None


def _share_between(rows: NDArray[np.float64], levels: NDArray[np.intp]) -> NDArray[np.float64]:
    """Per row of `rows` float[R, N] the variance between the means of its levels over the whole variance."""
    member = levels[:, None] == np.unique(levels)  # bool[N, levels]
    counts = member.sum(0)
    means = rows @ member / counts
    between = (counts * (means - rows.mean(1, keepdims=True)) ** 2).sum(1)
    return between / (rows.shape[1] * rows.var(1))
