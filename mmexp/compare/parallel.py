"""Parallel coordinates as inline SVG: all settings of a sweep and the figure that came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mmexp.page.curves import compact, ticks

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1000, 376, 50, 70, 66, 20
_MAX_LEVELS = 8
"""Numbers with more values than this stand on a scale; otherwise each has a place of its own."""
_NARROW = 200
"""Pixels between axes below which their names stand in two rows."""


@dataclass(frozen=True, kw_only=True)
class Thread:
    """One line through all axes."""

    group: int
    title: str
    """What the pointer shows."""
    settings: Sequence[str]
    value: float
    """On the last axis."""
    is_strong: bool
    """Whether it is drawn in front."""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    name: str
    x: float
    levels: Sequence[tuple[str, float]]
    """What is written on it, and how high."""
    heights: Sequence[float]
    """Of each thread."""


def parallel_chart(names: Sequence[str], threads: Sequence[Thread], metric: str) -> str:
    """One upright axis for each setting, one for the metric, one line for each thread.

    Args:
        names: Of the settings.
        threads: Their settings in the same order.
        metric: Name of the last axis.
    """
    columns = [_places([thread.settings[at] for thread in threads]) for at in range(len(names))]
    columns.append(_on_scale([thread.value for thread in threads]))
    gap = (_WIDTH - _LEFT - _RIGHT) / (len(columns) - 1)
    axes = [
        _Axis(name=name, x=round(_LEFT + gap * at, 1), levels=levels, heights=heights)
        for at, (name, (levels, heights)) in enumerate(zip([*names, metric], columns, strict=True))
    ]
    lines = []
    for at in sorted(range(len(threads)), key=lambda at: threads[at].is_strong):
        thread = threads[at]
        path = " ".join(f"{axis.x},{axis.heights[at]}" for axis in axes)
        line = f'<polyline class="line {"strong" if thread.is_strong else "weak"}" points="{path}"/>'
        lines.append(f'<g data-g="{thread.group}"><title>{escape(thread.title)}</title>{line}</g>')
    body = "".join(lines) + "".join(_drawn(axis, at, len(axes), gap) for at, axis in enumerate(axes))
    label = escape(f"{metric} by settings")
    return f'<svg class="parallel" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{body}</svg>'


def _places(texts: Sequence[str]) -> tuple[list[tuple[str, float]], list[float]]:
    distinct = sorted(set(texts), key=_sort_key)
    if len(distinct) > _MAX_LEVELS and all(_sort_key(text)[0] == 0 for text in distinct):
        return _on_scale([float(text) for text in texts])
    share = {text: at / (len(distinct) - 1) if len(distinct) > 1 else 0.5 for at, text in enumerate(distinct)}
    return [(text, _height(share[text])) for text in distinct], [_height(share[text]) for text in texts]


def _on_scale(values: Sequence[float]) -> tuple[list[tuple[str, float]], list[float]]:
    scale = ticks(min(values), max(values), 4)

    def height(value: float) -> float:
        return _height((value - scale[0]) / (scale[-1] - scale[0]))

    return [(compact(tick), height(tick)) for tick in scale], [height(value) for value in values]


def _height(share: float) -> float:
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP), 1)


def _sort_key(text: str) -> tuple[int, float, str]:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    return (0, number, text) if math.isfinite(number) else (1, 0.0, text)


def _drawn(axis: _Axis, at: int, count: int, gap: float) -> str:
    """The axis, what stands on it, and its name above."""
    text = "".join(
        f'<text class="tick halo-text" x="{axis.x + 6}" y="{y - 4}"><title>{escape(label)}</title>'
        f"{escape(_cut(label, 20))}</text>"
        for label, y in axis.levels
    )
    anchor = "start" if at == 0 else "end" if at == count - 1 else "middle"
    x = {"start": 10, "end": _WIDTH - 4}.get(anchor, axis.x)
    y = 14 if gap < _NARROW and at == count - 1 else 46 - (16 * (at % 2) if gap < _NARROW else 0)
    name = f'<text class="axis name" x="{x}" y="{y}" text-anchor="{anchor}">{escape(_cut(axis.name, 40))}</text>'
    return f'<line class="rule" x1="{axis.x}" x2="{axis.x}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>{text}{name}'


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
