"""Everything that is compared: figures with intervals, tests, costs, what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from mmexp.compare.groups import Factor, Group, factors, group_records
from mmexp.compare.importance import Importance, importances
from mmexp.compare.record import LAST_LOSS, Cost, Record
from mmexp.compare.settings import differing
from mmexp.compare.shared import Shared, share_samples
from mmexp.compare.sources import Found
from mmexp.compare.stats import Difference, Interval, bootstrap, holm, mean_interval, pareto_front
from mmexp.errors import ConfigError

_LESS_IS_BETTER = ("loss", "error", "perplexity")


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A group against the reference on one benchmark."""

    difference: Difference
    """Of the primary metric, the group's minus the reference's."""
    adjusted_p: float
    """After Holm's correction over the groups of this benchmark."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What all outputs are made from."""

    groups: Sequence[Group]
    """The best first."""
    metrics: Sequence[str]
    """Every figure, those that benchmarks are known by first."""
    primary: Sequence[str]
    """The figures that benchmarks are known by; without benchmarks the last training loss."""
    main: str
    """The figure that ranks."""
    reference: Group
    figures: Mapping[int, Mapping[str, float]]
    """id() of a record to its figures that may be compared, by name."""
    intervals: Mapping[tuple[str, str], Interval]
    """(metric, label) to mean and interval."""
    tests: Mapping[tuple[str, str], PairedTest]
    """(metric, label) to the test against the reference."""
    costs: Mapping[str, Cost]
    """Label to the mean cost of its runs."""
    differing: Sequence[str]
    """Config paths that are not the same in all groups."""
    factors: Sequence[Factor]
    """What was varied among the groups with the main figure, which are the first ones."""
    importance: Sequence[Importance]
    samples: Mapping[str, Shared]
    """`split/benchmark` to the samples that all its runs answered."""
    notes: Sequence[str]
    """What a reader must know of these figures."""
    left_out: Sequence[tuple[str, str]]


def compare(found: Found, metric: str | None = None, baseline: str | None = None) -> Comparison:
    """Compares runs.

    Args:
        found: The runs.
        metric: The figure that ranks: its whole name or an end of it; None takes the first of the first benchmark.
        baseline: Label, or a part of one, of the group that the others are tested against; None takes the best.

    Raises:
        ConfigError: no such metric or group; those that exist are listed.
    """
    groups, repeated = group_records(found.records)
    records = [record for group in groups for record in group.records]
    samples, figures, notes = share_samples(records)
    primary, metrics = _metric_names(records, figures)
    main = _chosen_metric(metric, metrics) if metric is not None else _usual_metric(primary, groups, figures)
    intervals = _intervals(groups, figures, metrics)
    groups = _ranked(groups, intervals, main)
    reference = _reference(groups, baseline)
    ranked = [group for group in groups if (main, group.label) in intervals]
    varied = factors([group.settings for group in ranked])
    return Comparison(
        groups=groups,
        metrics=metrics,
        primary=primary,
        main=main,
        reference=reference,
        figures=figures,
        intervals=intervals,
        tests=_tests(groups, reference, samples),
        costs={group.label: _mean_cost(group.records) for group in groups},
        differing=differing([group.settings for group in groups]),
        factors=varied,
        importance=_importances(ranked, varied, figures, main),
        samples=samples,
        notes=notes,
        left_out=[*found.left_out, *repeated],
    )


def sign(metric: str) -> int:
    """1 where more of it is better, -1 where less is."""
    return -1 if any(word in metric.rsplit("/", 1)[-1] for word in _LESS_IS_BETTER) else 1


def front(comparison: Comparison, cost: str) -> set[str]:
    """Labels on the Pareto front of a cost (a field of `Cost`) and the main metric.

    Costs count to three digits: logs are rounded, and a difference below that decides nothing.
    """
    points = {}
    for group in comparison.groups:
        interval = comparison.intervals.get((comparison.main, group.label))
        value = getattr(comparison.costs[group.label], cost)
        if interval is not None and value is not None:
            points[group.label] = (float(f"{value:.3g}"), sign(comparison.main) * interval.mean)
    return pareto_front(points)


def _metric_names(records: Sequence[Record], figures: Mapping[int, Mapping[str, float]]) -> tuple[list[str], list[str]]:
    everything = dict.fromkeys(name for record in records for name in figures[id(record)])
    known = dict.fromkeys(f"{key}/{metric}" for record in records for key, metric in record.primary.items())
    primary = [name for name in known if name in everything] or [name for name in everything if name == LAST_LOSS]
    return primary, [*primary, *(name for name in everything if name not in primary)]


def _usual_metric(primary: Sequence[str], groups: Sequence[Group], figures: Mapping[int, Mapping[str, float]]) -> str:
    """The figure that most groups have, the first of several."""
    if not primary:
        raise ConfigError("the runs hold no figures", expected="results.json or metrics.jsonl", where="runs",
                          fix="python -m mmexp.evaluate run=<run directory> evaluation=shapes_vqa")  # fmt: skip
    return max(primary, key=lambda name: sum(name in figures[id(group.records[0])] for group in groups))


def _chosen_metric(asked: str, metrics: Sequence[str]) -> str:
    matches = [name for name in metrics if name == asked] or [name for name in metrics if name.endswith(f"/{asked}")]
    if len(matches) != 1:
        shown = ", ".join(matches or [name for name in metrics if name.count("/") <= 2])
        found = f"{asked!r} is the end of {len(matches)} metrics" if matches else f"no metric {asked!r}"
        raise ConfigError(found, expected=f"one of {shown}", where="metric")
    return matches[0]


def _intervals(
    groups: Sequence[Group], figures: Mapping[int, Mapping[str, float]], metrics: Sequence[str]
) -> dict[tuple[str, str], Interval]:
    found = {}
    for group in groups:
        for metric in metrics:
            values = [figures[id(record)][metric] for record in group.records if metric in figures[id(record)]]
            if values:
                found[metric, group.label] = mean_interval(values)
    return found


def _importances(
    groups: Sequence[Group], varied: Sequence[Factor], figures: Mapping[int, Mapping[str, float]], main: str
) -> list[Importance]:
    scored = [(figures[id(record)][main], at) for at, group in enumerate(groups) for record in group.records
              if main in figures[id(record)]]  # fmt: skip
    return importances(
        [value for value, _ in scored], {factor.name: [factor.values[at] for _, at in scored] for factor in varied}
    )


def _ranked(groups: Sequence[Group], intervals: Mapping[tuple[str, str], Interval], main: str) -> list[Group]:
    def rank(group: Group) -> float:
        interval = intervals.get((main, group.label))
        return math.inf if interval is None else -sign(main) * interval.mean

    return sorted(groups, key=rank)


def _reference(groups: Sequence[Group], baseline: str | None) -> Group:
    if baseline is None:
        return groups[0]
    matches = [group for group in groups if group.label == baseline] or [g for g in groups if baseline in g.label]
    if len(matches) != 1:
        labels = "; ".join(group.label for group in groups)
        raise ConfigError(f"{len(matches)} groups are called {baseline!r}", expected=f"part of one of: {labels}",
                          where="baseline")  # fmt: skip
    return matches[0]


def _tests(
    groups: Sequence[Group], reference: Group, samples: Mapping[str, Shared]
) -> dict[tuple[str, str], PairedTest]:
    found: dict[tuple[str, str], PairedTest] = {}
    for shared in samples.values():
        scores = {group.label: shared.mean_scores(group.records) for group in groups}
        own = scores.get(reference.label)
        others = {label: one for label, one in scores.items() if one is not None and label != reference.label}
        if own is None or not others or not len(own):
            continue
        results = bootstrap(np.stack([one - own for one in others.values()], axis=1))
        adjusted = holm({label: result.p for label, result in zip(others, results, strict=True)})
        for label, result in zip(others, results, strict=True):
            found[shared.metric, label] = PairedTest(difference=result, adjusted_p=adjusted[label])
    return found


def _mean_cost(records: Sequence[Record]) -> Cost:
    def mean(name: str) -> float | None:
        values = [getattr(record.cost, name) for record in records]
        return fmean(values) if all(value is not None for value in values) else None

    return Cost(**{name: mean(name) for name in Cost.__dataclass_fields__})
