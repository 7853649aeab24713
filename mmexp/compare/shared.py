"""Which samples all runs answered, and the figures on those alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmexp.compare.record import Line, Record, line_of

SampleKey = tuple[str, str]
"""Sample id, and what tells its target from others."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The samples of one benchmark on one split that every run with it answered."""

    name: str
    """`split/benchmark`."""
    metric: str
    """Its figure that is a mean over samples, `split/benchmark/metric`."""
    keys: Sequence[SampleKey]
    lines: Mapping[int, Sequence[Line]] = field(repr=False)
    """id() of a record to its answers, one for each of `keys`."""

    def mean_scores(self, records: Sequence[Record]) -> NDArray[np.float64] | None:
        """Per sample the mean score over the seeds; None where a run has no answers or no scores."""
        rows = [self.scores(record) for record in records]
        known = [row for row in rows if row is not None]
        return np.mean(known, axis=0) if len(known) == len(rows) and known else None

    def scores(self, record: Record) -> NDArray[np.float64] | None:
        """Per sample the score of one run."""
        lines = self.lines.get(id(record))
        if lines is None or any(line.score is None for line in lines):
            return None
        return np.asarray([line.score for line in lines], dtype=float)


Figures = dict[int, dict[str, float]]
"""id() of a record to its figures by name."""


def share_samples(records: Sequence[Record]) -> tuple[dict[str, Shared], Figures, list[str]]:
    """The common samples of every benchmark, the figures that may be compared, and what has to be said of them.

    Where runs answered different samples, the figure that is a mean over samples is made anew from those in common,
    and the others, which cannot be, are left out.
    """
    figures: Figures = {id(record): dict(record.metrics) for record in records}
    samples: dict[str, Shared] = {}
    notes: list[str] = []
    for name in dict.fromkeys(name for record in records for name in record.primary):
        owners = [record for record in records if name in record.primary]
        answered = [record for record in owners if record.predictions.get(name)]
        if len(answered) < len(owners):
            notes.append(f"{name}: {len(owners) - len(answered)} of {len(owners)} runs have no predictions here, so "
                         "their samples cannot be compared or tested")  # fmt: skip
        if not answered:
            continue
        shared = _shared(name, answered)
        if any(line.score is None for lines in shared.lines.values() for line in lines):
            notes.append(f"{name}: has no score for each sample, so nothing is tested")
        restricted = any(len(record.predictions[name]) != len(shared.keys) for record in answered)
        if restricted:
            notes.append(_restrict(shared, owners, answered, figures))
        if shared.keys:
            samples[name] = shared
    return samples, figures, notes


def _shared(name: str, records: Sequence[Record]) -> Shared:
    everywhere = set.intersection(*(set(record.predictions[name]) for record in records))
    keys = [key for key in records[0].predictions[name] if key in everywhere]
    return Shared(
        name=name,
        metric=f"{name}/{records[0].primary[name]}",
        keys=keys,
        lines={id(record): [line_of(record.predictions[name][key]) for key in keys] for record in records},
    )


def _restrict(shared: Shared, owners: Sequence[Record], answered: Sequence[Record], figures: Figures) -> str:
    """Takes figures of different samples out, puts those of the common samples in, and says so."""
    name = shared.name
    for record in owners:
        own = figures[id(record)]
        for metric in [metric for metric in own if metric.startswith(f"{name}/")]:
            del own[metric]
        scores = shared.scores(record)
        if scores is not None and len(scores):
            own[f"{name}/{record.primary[name]}"] = float(scores.mean())
    counts = sorted({len(record.predictions[name]) for record in answered})
    sizes = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    if not shared.keys:
        return f"{name}: runs answered different samples ({sizes} each) and share none, so it is not compared"
    return (
        f"{name}: runs answered different samples ({sizes} each); compared on the {len(shared.keys):,} that all of "
        "them answered, and only by the mean of their scores"
    )
