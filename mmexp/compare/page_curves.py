"""The learning curves of a comparison's page, over steps and over time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean

from mmexp.compare.charts import Curve, curve_chart
from mmexp.compare.comparison import Comparison
from mmexp.compare.groups import Group
from mmexp.compare.record import Record
from mmexp.page import is_validation_curve, time_of_steps
from mmexp.page.curves import Points, line_key, running_mean, thin

_SMOOTHED = 20
"""Points from which on a training loss is smoothed."""
_AXES = {"step": "step", "time": "training time (s)"}


def curve_figures(comparison: Comparison, letters: Mapping[str, str]) -> str:
    """Training losses and the figures of evaluations between steps, one chart each; a switch between steps and time."""
    names = dict.fromkeys(
        name
        for group in comparison.groups
        for record in group.records
        for name, points in record.series.items()
        if name.startswith("train/loss") or (is_validation_curve(name) and len(points) > 1)
    )
    figures = "".join(_figure(comparison, letters, name, axis) for name in names for axis in _AXES)
    if not figures:
        return '<p class="note">No curves were logged.</p>'
    radios = "".join(
        f'<label><input type="radio" name="axis" value="{axis}"{" checked" * (axis == "step")}> over {label}</label>'
        for axis, label in _AXES.items()
    )
    return f'<p class="axes">{radios}</p><div id="curves" class="by-step"><div class="curves">{figures}</div></div>'


def _figure(comparison: Comparison, letters: Mapping[str, str], name: str, axis: str) -> str:
    curves = [
        curve
        for at, group in enumerate(comparison.groups)
        for curve in curves_of(at, group, f"{letters[group.label]} {group.label}", name, axis)
    ]
    if not curves:
        return ""
    chart = curve_chart(curves, _AXES[axis], name.rsplit("/", 1)[-1])
    key = "".join(
        f'<span data-g="{at}">{line_key(at)}{letters[group.label]}</span>'
        for at, group in enumerate(comparison.groups)
        if any(curve.group == at for curve in curves)
    )
    body = f'<figcaption>{escape(name)}</figcaption>{chart}<p class="legend">{key}</p>'
    return f'<figure class="over-{axis}">{body}</figure>'


def curves_of(at: int, group: Group, title: str, name: str, axis: str) -> list[Curve]:
    """The mean over seeds, behind it the seeds or, of one seed, what was smoothed away."""
    lines = {record.seed: line for record in group.records if (line := _line(record, name, axis))}
    if not lines:
        return []
    mean = _mean(list(lines.values()))
    smooth = running_mean(mean) if len(mean) >= _SMOOTHED and name.startswith("train/") else mean
    behind = lines if len(lines) > 1 or smooth is not mean else {}
    curves = [Curve(group=at, title=f"{title}, seed {seed}", points=thin(points), faint=True)
              for seed, points in behind.items()]  # fmt: skip
    many = f"{title}, mean of {len(lines)} seeds" if len(lines) > 1 else title
    return [*curves, Curve(group=at, title=many, points=thin(smooth))]


def _line(record: Record, name: str, axis: str) -> Points:
    points = record.series.get(name, [])
    if axis == "step":
        return points
    seconds = time_of_steps(record.series)
    steps, times = [0, *seconds], [0.0, *seconds.values()]
    return [(_between(steps, times, step), value) for step, value in points if step <= steps[-1]]


def _between(steps: Sequence[int], times: Sequence[float], step: float) -> float:
    """When a step was, as if those between two records had taken equally long."""
    after = bisect_left(steps, step)
    if steps[after] == step:
        return times[after]
    share = (step - steps[after - 1]) / (steps[after] - steps[after - 1])
    return times[after - 1] + share * (times[after] - times[after - 1])


def _mean(lines: Sequence[Points]) -> list[tuple[float, float]]:
    """Point by point, as far as the shortest goes: seeds of a group log at the same steps."""
    return [(fmean(x for x, _ in points), fmean(y for _, y in points)) for points in zip(*lines, strict=False)]
