"""Line charts as inline SVG. Colours and fonts come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

Points = Sequence[tuple[float, float]]
"""x (a step where nothing else is said) and value, x rising."""

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 70, 18, 12, 40
_MAX_POINTS = 160


def line_chart(series: Mapping[str, Points], y_label: str, smooth: bool = False) -> str:
    """One chart: steps to the right, values up from 0.

    Args:
        series: Legend text to points. With one line there is no legend.
        y_label: Name and unit of the vertical axis.
        smooth: Draws a running mean over the raw line, for a noisy single series.
    """
    series = {name: thin(points) for name, points in series.items()}
    everything = [point for points in series.values() for point in points]
    first, last = min(step for step, _ in everything), max(step for step, _ in everything)
    x_ticks = [tick for tick in ticks(first, last, 5) if tick == int(tick) and first <= tick <= last]
    y_ticks = ticks(min(0.0, *(value for _, value in everything)), max(value for _, value in everything), 4)
    frame = Frame(first, max(last, first + 1), y_ticks[0], y_ticks[-1])
    body = [grid(frame, x_ticks, y_ticks, "step", y_label)]
    for index, (_, points) in enumerate(series.items()):
        if smooth and len(points) >= 20:
            body += [polyline(frame, points, index, "raw"), polyline(frame, running_mean(points), index)]
        else:
            body += [polyline(frame, points, index)]
        if len(points) == 1:
            body.append(
                f'<circle class="s{index % 6} dot" cx="{frame.x(points[0][0])}" cy="{frame.y(points[0][1])}" r="4"/>'
            )
    body.append(_hover(frame, series))
    label = escape(f"{y_label} over steps {first} to {last}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>'
    return svg + (_legend(list(series)) if len(series) > 1 else "")


class Frame:
    """From data to pixels."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float) -> None:
        self.x0, self.x1, self.y0, self.y1 = x0, x1, y0, y1

    def x(self, value: float) -> float:
        return round(LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM), 1)


def grid(frame: Frame, x_ticks: list[float], y_ticks: list[float], x_label: str, y_label: str) -> str:
    """Rules, numbers and names of both axes."""
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{compact(tick)}</text>')
    for tick in x_ticks:
        parts.append(
            f'<text class="tick" x="{frame.x(tick)}" y="{floor + 16}" text-anchor="middle">{compact(tick)}</text>'
        )
    middle = (TOP + floor) / 2
    parts.append(
        f'<text class="axis" x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text class="axis" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def polyline(frame: Frame, points: Points, index: int, extra: str = "") -> str:
    """A line in the colour and dashes of its place among the others; `extra` are further classes."""
    path = " ".join(f"{frame.x(step)},{frame.y(value)}" for step, value in points)
    return f'<polyline class="line s{index % 6} d{index // 6 % 4} {extra}" points="{path}"/>'


def _hover(frame: Frame, series: Mapping[str, Points]) -> str:
    """Strips that show step and values under the pointer; no script needed."""
    values: dict[float, list[str]] = {}
    for name, points in series.items():
        for step, value in points:
            values.setdefault(step, []).append(f"{name} {value:.4g}")
    steps = sorted(values)
    edges = [frame.x(steps[0])] + [(frame.x(a) + frame.x(b)) / 2 for a, b in pairwise(steps)] + [frame.x(steps[-1])]
    strips = []
    for step, (left, right) in zip(steps, pairwise(edges), strict=True):
        title = escape(f"step {step}: " + ", ".join(values[step]))
        strips.append(
            f'<rect class="strip" x="{left:.1f}" width="{max(right - left, 1):.1f}" y="{TOP}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{title}</title></rect>'
        )
    return "".join(strips)


def line_key(index: int) -> str:
    """A short piece of line number `index`, for legends."""
    line = f'<line class="line s{index % 6} d{index // 6 % 4}" x1="0" x2="18" y1="4" y2="4"/>'
    return f'<svg class="key" viewBox="0 0 18 8">{line}</svg>'


def _legend(names: list[str]) -> str:
    entries = (f"<span>{line_key(index)}{escape(name)}</span>" for index, name in enumerate(names))
    return f'<p class="legend">{"".join(entries)}</p>'


def thin(points: Points) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` points: means of equally many neighbours, placed at the last of them."""
    size = math.ceil(len(points) / _MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def running_mean(points: Points, reach: int = 5) -> list[tuple[float, float]]:
    """Mean over `reach` neighbours on either side, fewer at the ends alike on both sides, so that nothing lags."""
    smoothed: list[tuple[float, float]] = []
    for index, (step, _) in enumerate(points):
        side = min(reach, index, len(points) - 1 - index)
        window = [value for _, value in points[index - side : index + side + 1]]
        smoothed.append((step, sum(window) / len(window)))
    return smoothed


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = next((power * m for m in (1, 2, 2.5, 5, 10) if power * m * count >= span * 0.999), power * 10)
    start, end = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(start, max(end, start + 1) + 1)]


def compact(value: float) -> str:
    """A number for a narrow place: 12000 -> 12k, 0.0002 -> 2e-4."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (10 if unit == "k" else 1):
            return f"{value / size:g}{unit}"
    if value and abs(value) < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"
