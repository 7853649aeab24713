"""What a comparison's page says of a sweep: which settings mattered, and all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from mmexp.compare.comparison import Comparison, sign
from mmexp.compare.importance import METHOD
from mmexp.compare.parallel import Thread, parallel_chart
from mmexp.compare.rows import figure, short

_MIN_FACTORS, _MIN_RUNS = 3, 8
"""Parallel coordinates are drawn from so many varied settings or so many runs on."""
_MAX_AXES, _MAX_BARS = 8, 12
_STRONG = 0.25
"""Share of the groups that is drawn in front: the best ones."""


def sweep_section(comparison: Comparison, letters: Mapping[str, str]) -> str:
    """Importance and parallel coordinates; empty where there are too few runs for both."""
    sections = [_importance(comparison), _parallel(comparison, letters)]
    body = "".join(section for section in sections if section)
    return f"<h2>What mattered</h2>{body}" if body else ""


def _importance(comparison: Comparison) -> str:
    if not comparison.importance:
        return ""
    bars = "".join(
        f'<div class="bar"><span>{escape(one.name)}</span><i><u style="width:{one.share:.1%}"></u>'
        f'<s style="left:{min(one.by_chance, 1):.1%}"></s></i><b>{one.share:.2f}, chance {one.by_chance:.2f}</b></div>'
        for one in comparison.importance[:_MAX_BARS]
    )
    more = len(comparison.importance) - _MAX_BARS
    rest = f", {more} less important settings left out" if more > 0 else ""
    return (
        f"<h3>Share of the variance of {escape(short(comparison.main))}{rest}</h3>"
        f'<figure class="bars">{bars}</figure><p class="legend">{escape(METHOD)} The upright mark is chance.</p>'
    )


def _parallel(comparison: Comparison, letters: Mapping[str, str]) -> str:
    factors = comparison.factors
    num_runs = sum(len(group.records) for group in comparison.groups)
    if not factors or (len(factors) < _MIN_FACTORS and num_runs < _MIN_RUNS):
        return ""
    order = {one.name: at for at, one in enumerate(comparison.importance)}
    axes = sorted(factors, key=lambda factor: order.get(factor.name, len(order)))[:_MAX_AXES]
    labels = [group.label for group in comparison.groups[: len(factors[0].values)]]
    means = [comparison.intervals[comparison.main, label].mean for label in labels]
    limit = sorted(means, reverse=sign(comparison.main) > 0)[max(int(len(means) * _STRONG) - 1, 0)]
    best = sign(comparison.main)
    threads = [
        Thread(
            group=at,
            title=f"{letters[label]} {label}: {figure(mean)}",
            settings=[factor.values[at] for factor in axes],
            value=mean,
            is_strong=best * mean >= best * limit,
        )
        for at, (label, mean) in enumerate(zip(labels, means, strict=True))
    ]
    chart = parallel_chart([factor.name for factor in axes], threads, short(comparison.main))
    more = f", the {_MAX_AXES} most important of {len(factors)} settings" if len(factors) > _MAX_AXES else ""
    return (
        f'<h3>Settings and figure of each group{more}</h3><figure class="scroll">{chart}</figure>'
        '<p class="legend">One line for each group; the best quarter in front.</p>'
    )
