"""Line charts."""

from __future__ import annotations

import re

import pytest

from mmexp.page.curves import compact, line_chart


@pytest.mark.parametrize("points", [[(5, 2.0)], [(0, 0.0), (9, 0.0)], [(s, 3 / (s + 1) - 1) for s in range(1000)]])
def test_curves_stay_in_the_frame(points: list[tuple[int, float]]) -> None:
    svg = line_chart({"loss": points, "<b>": points}, "loss", smooth=True)
    pairs = [pair.split(",") for group in re.findall(r'points="([^"]*)"', svg) for pair in group.split()]
    assert pairs
    assert all(70 <= float(x) <= 382 and 12 <= float(y) <= 196 for x, y in pairs)
    assert "<b>" not in svg
    assert "step" in svg


def test_curve_goes_down_where_values_do() -> None:
    svg = line_chart({"loss": [(s, 10.0 - s) for s in range(10)]}, "loss")
    heights = [float(pair.split(",")[1]) for pair in re.findall(r'points="([^"]*)"', svg)[0].split()]
    assert heights == sorted(heights)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12000, "12k"), (7500, "7500"), (2e-4, "2e-4"), (0.05, "0.05"), (3e6, "3M")]
)
def test_compact(value: float, text: str) -> None:
    assert compact(value) == text
