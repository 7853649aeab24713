"""Colours of a heat map: from nothing over violet and orange to light yellow, lightness rising all the way."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

_STOPS = ((60, 15, 110), (135, 35, 130), (205, 65, 95), (245, 125, 30), (250, 195, 45), (252, 250, 170))
_ALPHA = 0.9
"""Opacity of the strongest colour. What lies below is darkened, so that lightness alone tells more from less."""
DIM = 0.5
"""Brightness of a picture under a map; the page's style sheet has the same."""


def palette() -> np.ndarray:
    """uint8[256, 4], red, green, blue and opacity for 0 to 255."""
    steps = np.linspace(0, 1, 256)
    places = np.linspace(0, 1, len(_STOPS))
    colours = [np.interp(steps, places, [stop[channel] for stop in _STOPS]) for channel in range(3)]
    opacity = 255 * _ALPHA * steps**0.6
    return np.stack([*colours, opacity], 1).round().astype(np.uint8)


def css_gradient() -> str:
    """The same as a CSS gradient from left to right, opaque."""
    places = np.linspace(0, 100, len(_STOPS))
    stops = ", ".join(f"rgb({r} {g} {b}) {place:.0f}%" for (r, g, b), place in zip(_STOPS, places, strict=True))
    return f"linear-gradient(to right, {stops})"


def is_rising() -> bool:
    """Whether every colour is lighter than the one before, so that order shows without hue."""
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in _STOPS]
    return all(low < high for low, high in pairwise(light))
