"""Charts of a comparison as inline SVG: curves, and cost against quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mmexp.page.curves import HEIGHT, WIDTH, Frame, Points, grid, polyline, ticks

_MAX_LETTERS = 12
"""Of more points only those on the front have a letter and an interval."""


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
    """Cost to the right, quality upwards; the front is joined by a line, its points are full.

    Intervals are cut off at the frame. Of many points only those of the front have letters and intervals.
    """
    x_ticks = ticks(min(mark.x for mark in marks), max(mark.x for mark in marks), 4)
    low, high = min(mark.y for mark in marks), max(mark.y for mark in marks)
    room = 0.15 * (high - low)  # intervals of two seeds are so wide that all means would become one line
    y_ticks = ticks(low - room, high + room, 4)
    frame = Frame(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    steps: list[tuple[float, float]] = []
    for mark in sorted((mark for mark in marks if mark.is_front), key=lambda mark: mark.x):
        steps += [(mark.x, steps[-1][1])] if steps else []
        steps.append((mark.x, mark.y))
    path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in steps)
    body = f'<polyline class="front" points="{path}"/>' + "".join(
        _mark(frame, mark, is_detailed=mark.is_front or len(marks) <= _MAX_LETTERS) for mark in marks
    )
    better = "downwards" if less_is_better else "upwards"
    return _svg(grid(frame, x_ticks, y_ticks, x_label, y_label) + body, f"{y_label} against {x_label}, better {better}")


def _mark(frame: Frame, mark: Mark, is_detailed: bool) -> str:
    x, y = frame.x(mark.x), frame.y(mark.y)
    bar = ""
    if mark.half is not None and is_detailed:
        low, high = (frame.y(_within(mark.y + side * mark.half, frame)) for side in (-1, 1))
        bar = f'<line class="line s{mark.group % 6} spread" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>'
    letter = f'<text class="tick halo-text" x="{x + 8}" y="{y - 5}">{escape(mark.letter)}</text>' if is_detailed else ""
    kind = "full" if mark.is_front else "dot"
    return (
        f'<g data-g="{mark.group}"><title>{escape(mark.title)}</title>{bar}'
        f'<circle class="s{mark.group % 6} {kind} f{mark.group % 6}" cx="{x}" cy="{y}" r="5"/>'
        f"{letter}</g>"
    )


def _within(value: float, frame: Frame) -> float:
    return min(max(value, frame.y0), frame.y1)


def _svg(body: str, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'
