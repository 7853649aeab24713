"""Intervals over seeds, paired tests over samples, and the correction for many of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
_MAX_DRAWN = 4_000_000
"""Counts drawn at once, so that memory stays small for any number of samples."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds."""

    mean: float
    half: float | None
    """Half the width of the 95 % interval; None for a single seed, which says nothing of others."""
    n: int
    """Number of seeds."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference over samples."""

    mean: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    p: float
    """Two-sided; of one test, before any correction."""
    num_samples: int


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval from Student's t with n - 1 degrees of freedom: seeds are taken as normally spread."""
    n = len(values)
    half = t_quantile(n - 1) * stdev(values) / math.sqrt(n) if n > 1 else None
    return Interval(mean=fmean(values), half=half, n=n)


@cache
def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t beyond which a share of `1 - level` lies on both sides together, by bisection."""
    low, high = 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, freedom) < level else (low, middle)
    return high


def bootstrap(differences: NDArray[np.float64], seed: int = 0) -> list[Difference]:
    """The paired bootstrap: samples are drawn with replacement, the same ones for both sides of each difference.

    Args:
        differences: float[S, K], per sample the difference of each of K pairs.
        seed: Of the draws; equal input gives equal output.

    Returns:
        Per pair the mean, the percentile interval, and p by inverting it: twice the smaller share of resampled means
        on one side of zero, with one resample added so that it is never 0.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 15.
    """
    size = len(differences)
    generator = np.random.default_rng(seed)
    even = np.full(size, 1 / size)
    chunk = max(1, min(NUM_RESAMPLES, _MAX_DRAWN // size))
    means = np.concatenate(
        [
            generator.multinomial(size, even, min(chunk, NUM_RESAMPLES - done)) @ differences / size
            for done in range(0, NUM_RESAMPLES, chunk)
        ]
    )
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    tolerance = 1e-12 * np.abs(differences).max(initial=1.0)  # sums of equal numbers differ in their last bits
    beside = np.minimum((means <= tolerance).sum(0), (means >= -tolerance).sum(0))
    p = np.minimum(2 * (beside + 1) / (NUM_RESAMPLES + 1), 1.0)
    return [
        Difference(mean=float(mean), low=float(a), high=float(b), p=float(chance), num_samples=size)
        for mean, a, b, chance in zip(differences.mean(0), low, high, p, strict=True)
    ]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p of each test, so that the chance of any false finding among them is at most the level.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def pareto_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Those that no other point beats: none costs at most as much and is at least as good, and better in one of both.

    Args:
        points: Name to (cost, quality); less cost and more quality are better.
    """
    front: set[str] = set()
    best = cheapest = -math.inf
    for name, (cost, quality) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if quality > best:
            front.add(name)
            best, cheapest = quality, cost
        elif quality == best and cost == cheapest:  # equal to a point of the front
            front.add(name)
    return front


def _share_within(t: float, freedom: int) -> float:
    """The share of Student's distribution between -t and t, for a whole number of degrees of freedom.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (power - 1) / power
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
