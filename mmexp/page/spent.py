"""What the training of a run took, read off its log."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mmexp.page.read import Series, load_training

_RATES = {"tokens": "data/tokens_per_s", "samples": "data/samples_per_s"}
"""Totals, and what is logged of them."""


def spent(series: Series) -> dict[str, float]:
    """`train_s`, `tokens` and `samples` of one run; what was not logged is left out."""
    seconds = time_of_steps(series)
    found = {"train_s": list(seconds.values())[-1]} if seconds else {}
    totals = {name: total_of(series, rate) for name, rate in _RATES.items()}
    return found | {name: total for name, total in totals.items() if total is not None}


def spent_before(folders: Iterable[Path]) -> dict[str, float]:
    """What the runs in these directories took, with the runs that they started from in turn.

    A run that two of them started from counts twice.
    """
    found: dict[str, float] = {}
    for folder in folders:
        manifest, series = load_training(folder)
        for costs in (spent(series), manifest.get("derived", {}).get("before", {})):
            for name, value in costs.items():
                found[name] = found.get(name, 0.0) + value
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def time_of_steps(series: Series) -> dict[int, float]:
    """Step to the seconds of training up to it; pauses between two starts of a run do not count."""
    seconds, before, total = {}, 0, 0.0
    for step, mean in series.get("time/step_s", []):
        total += mean * (step - before)
        before = step
        seconds[step] = total
    return seconds


def total_of(series: Series, rate: str) -> float | None:
    """The total of something that was logged per second."""
    if not series.get(rate) or not series.get("time/step_s"):
        return None
    rates, before, total = dict(series[rate]), 0, 0.0
    for step, mean in series["time/step_s"]:
        total += rates.get(step, 0.0) * mean * (step - before)
        before = step
    return total
