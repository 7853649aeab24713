"""The table that the terminal, Markdown, LaTeX and CSV show, as plain rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmexp.compare.comparison import Comparison, sign
from mmexp.compare.stats import Interval

COSTS = {
    "train_s": ("training", "s"),
    "tokens": ("tokens", ""),
    "samples": ("samples", ""),
    "images_per_s": ("images", "1/s"),
    "peak_memory_gb": ("peak memory", "GB"),
    "tokens_per_image": ("tokens per image", ""),
}
"""Fields of `Cost` with their name and unit."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure."""

    interval: Interval | None
    best: bool = False
    """Whether no other group has a better mean."""
    significant: bool | None = None
    """Whether it differs from the reference at 5 % after correction; None where nothing was tested."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One group."""

    label: str
    num_seeds: int
    is_reference: bool
    cells: Sequence[Cell]
    """One for each metric."""
    costs: Sequence[float | None]
    """One for each of the costs shown."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Head and body of the table."""

    metrics: Sequence[str]
    costs: Sequence[str]
    """Fields of `Cost` that at least one group has."""
    body: Sequence[Row]


def table_rows(comparison: Comparison, metrics: Sequence[str] | None = None) -> Rows:
    """The groups, best first, with the figures that benchmarks are known by (or `metrics`) and what they cost."""
    names = list(metrics or dict.fromkeys([comparison.main, *comparison.primary]))
    costs = [name for name in COSTS if any(getattr(cost, name) is not None for cost in comparison.costs.values())]
    best = {name: _best(comparison, name) for name in names}
    body = [
        Row(
            label=group.label,
            num_seeds=len(group.records),
            is_reference=group is comparison.reference,
            cells=[_cell(comparison, name, group.label, best[name]) for name in names],
            costs=[getattr(comparison.costs[group.label], name) for name in costs],
        )
        for group in comparison.groups
    ]
    return Rows(metrics=names, costs=costs, body=body)


def short(metric: str) -> str:
    """A metric's name for a narrow place: `heldout_images/vqa/exact_match` -> `vqa exact_match (heldout_images)`."""
    parts = metric.split("/")
    return f"{parts[1]} {'/'.join(parts[2:])} ({parts[0]})" if len(parts) > 2 else metric


def figure(value: float) -> str:
    """A figure with three decimals, or three digits where that shows nothing."""
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def amount(value: float | None) -> str:
    """A cost in a narrow place, with thousands apart."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def p_text(p: float) -> str:
    """A p as people write it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def letters_of(comparison: Comparison) -> dict[str, str]:
    """Label to a short name: A, B, ... Z, AA, AB, ... in the order of the ranking."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return {
        group.label: (alphabet[at // 26 - 1] if at >= 26 else "") + alphabet[at % 26]
        for at, group in enumerate(comparison.groups)
    }


def sentence(comparison: Comparison) -> str:
    """How to read the table."""
    direction = "more" if sign(comparison.main) > 0 else "less"
    text = (
        f"Ranked by {short(comparison.main)}, {direction} is better; mean and 95 % interval over seeds (Student's t)."
    )
    if comparison.tests:
        text += f" * differs from {comparison.reference.label} at 5 % (paired bootstrap over samples, Holm)."
    return text


def _cell(comparison: Comparison, metric: str, label: str, best: float | None) -> Cell:
    interval = comparison.intervals.get((metric, label))
    test = comparison.tests.get((metric, label))
    return Cell(
        interval=interval,
        best=interval is not None and interval.mean == best and len(comparison.groups) > 1,
        significant=None if test is None else test.adjusted_p < 0.05,
    )


def _best(comparison: Comparison, metric: str) -> float | None:
    means = [interval.mean for (name, _), interval in comparison.intervals.items() if name == metric]
    return (max(means) if sign(metric) > 0 else min(means)) if means else None
