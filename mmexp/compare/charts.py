"""Charts of a comparison as inline SVG: curves, cost against quality, parallel coordinates, bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mmexp.page.curves import HEIGHT, WIDTH, Frame, Points, compact, grid, polyline, ticks

_PARALLEL_WIDTH, _PARALLEL_HEIGHT = 150, 300
"""Pixels between two axes, and of the whole."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line."""

    group: int
    """Which colour, dashes and legend entry."""
    title: str
    points: Points
    faint: bool = False
    """Whether it stands behind the others."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point of cost against quality."""

    group: int
    letter: str
    title: str
    x: float
    y: float
    half: float | None
    """Half the interval of y."""
    is_front: bool


def curve_chart(curves: Sequence[Curve], x_label: str, y_label: str) -> str:
    """Lines over steps or time; axes end at round numbers around the values."""
    everything = [point for curve in curves for point in curve.points]
    x_ticks = ticks(0.0, max(x for x, _ in everything), 4)
    # what stands behind may leave the frame: the first steps of a loss would press everything else together
    shown = [y for curve in curves if not curve.faint for _, y in curve.points] or [y for _, y in everything]
    y_ticks = ticks(min(shown), max(shown), 4)
    frame = Frame(0.0, max(x for x, _ in everything) or 1.0, y_ticks[0], y_ticks[-1])
    lines = [
        f'<g data-g="{curve.group}"><title>{escape(curve.title)}</title>'
        f"{polyline(frame, [(x, _within(y, frame)) for x, y in curve.points], curve.group, 'raw' * curve.faint)}</g>"
        for curve in sorted(curves, key=lambda curve: not curve.faint)
    ]
    inside = [tick for tick in x_ticks if tick <= frame.x1]
    return _svg(grid(frame, inside, y_ticks, x_label, y_label) + "".join(lines), f"{y_label} over {x_label}")


def pareto_chart(marks: Sequence[Mark], x_label: str, y_label: str, less_is_better: bool) -> str:
    """Cost to the right, quality upwards with its interval; the front is joined by a line and its points are full."""
    x_ticks = ticks(min(mark.x for mark in marks), max(mark.x for mark in marks), 4)
    ends = [mark.y + side * (mark.half or 0.0) for mark in marks for side in (-1, 1)]
    y_ticks = ticks(min(ends), max(ends), 4)
    frame = Frame(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    steps: list[tuple[float, float]] = []
    for mark in sorted((mark for mark in marks if mark.is_front), key=lambda mark: mark.x):
        steps += [(mark.x, steps[-1][1])] if steps else []
        steps.append((mark.x, mark.y))
    path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in steps)
    body = f'<polyline class="front" points="{path}"/>' + "".join(_mark(frame, mark) for mark in marks)
    better = "downwards" if less_is_better else "upwards"
    return _svg(grid(frame, x_ticks, y_ticks, x_label, y_label) + body, f"{y_label} against {x_label}, better {better}")


def parallel_chart(names: Sequence[str], rows: Sequence[Sequence[str]], values: Sequence[float], metric: str,
                   strong: Sequence[bool], titles: Sequence[str]) -> str:  # fmt: skip
    """One vertical axis for each thing that was varied and one for the metric, one line for each group.

    Args:
        names: Of the axes, the metric's not among them.
        rows: Per group a value on each axis.
        values: Per group the metric.
        metric: Its name.
        strong: Per group whether it is drawn in front.
        titles: Per group what the pointer shows.
    """
    axes = [_axis([row[at] for row in rows]) for at in range(len(names))]
    scale = ticks(min(values), max(values), 4)
    span = scale[-1] - scale[0]
    axes.append(({compact(tick): (tick - scale[0]) / span for tick in scale}, [(v - scale[0]) / span for v in values]))
    height, left, top = _PARALLEL_HEIGHT, 50, 44
    width = 2 * left + 40 + _PARALLEL_WIDTH * (len(axes) - 1)

    def place(at: int, share: float) -> tuple[float, float]:
        return left + 20 + _PARALLEL_WIDTH * at, round(height - 20 - share * (height - 20 - top), 1)

    body = []
    for group in sorted(range(len(rows)), key=lambda group: strong[group]):
        path = " ".join("{},{}".format(*place(at, shares[group])) for at, (_, shares) in enumerate(axes))
        kind = "strong" if strong[group] else "weak"
        body.append(f'<g data-g="{group}"><title>{escape(titles[group])}</title>'
                    f'<polyline class="line {kind}" points="{path}"/></g>')  # fmt: skip
    for at, (name, (levels, _)) in enumerate(zip([*names, metric], axes, strict=True)):
        body.append(_axis_svg(name, [(text, *place(at, share)) for text, share in levels.items()], at % 2, height, top))
    svg = f'<svg class="parallel" style="min-width:{width * 0.8:.0f}px" viewBox="0 0 {width} {height}" role="img" '
    return f'{svg}aria-label="{escape(metric)} by settings">{"".join(body)}</svg>'


def _axis(texts: Sequence[str]) -> tuple[dict[str, float], list[float]]:
    """What stands on an axis with its height, 0 to 1, and the height of each text."""
    distinct = sorted(set(texts), key=_sort_key)
    if len(distinct) > 8 and all(_sort_key(text)[0] == 0 for text in distinct):
        numbers = [float(text) for text in texts]
        scale = ticks(min(numbers), max(numbers), 5)
        span = scale[-1] - scale[0]
        return {compact(t): (t - scale[0]) / span for t in scale}, [(n - scale[0]) / span for n in numbers]
    heights = {text: at / (len(distinct) - 1) if len(distinct) > 1 else 0.5 for at, text in enumerate(distinct)}
    return heights, [heights[text] for text in texts]


def _sort_key(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _axis_svg(name: str, levels: Sequence[tuple[str, float, float]], row: int, height: int, top: int) -> str:
    x = levels[0][1]
    text = "".join(
        f'<text class="tick halo-text" x="{x + 5}" y="{y - 4}">{escape(_cut(label, 20))}<title>{escape(label)}</title></text>'
        for label, x, y in levels
    )
    head = f'<text class="axis name" x="{x}" y="{14 + 14 * row}" text-anchor="middle">{escape(_cut(name, 34))}</text>'
    return f'<line class="rule" x1="{x}" x2="{x}" y1="{top}" y2="{height - 20}"/>{text}{head}'


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _mark(frame: Frame, mark: Mark) -> str:
    x, y = frame.x(mark.x), frame.y(mark.y)
    bar = ""
    if mark.half is not None:
        bar = (f'<line class="line s{mark.group % 6} spread" x1="{x}" x2="{x}" y1="{frame.y(mark.y - mark.half)}" '
               f'y2="{frame.y(mark.y + mark.half)}"/>')  # fmt: skip
    kind = "full" if mark.is_front else "dot"
    return (
        f'<g data-g="{mark.group}"><title>{escape(mark.title)}</title>{bar}'
        f'<circle class="s{mark.group % 6} {kind} f{mark.group % 6}" cx="{x}" cy="{y}" r="5"/>'
        f'<text class="tick halo-text" x="{x + 8}" y="{y - 5}">{escape(mark.letter)}</text></g>'
    )


def _within(value: float, frame: Frame) -> float:
    return min(max(value, frame.y0), frame.y1)


def _svg(body: str, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'
