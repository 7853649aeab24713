"""Draws a scene: large first, then reduced, so that edges are smooth."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from mmexp.shapes.glyphs import COLUMNS, GLYPHS, ROWS
from mmexp.shapes.scenes import Scene, Thing

SIDE = 144
"""Pixels of the finished square picture."""
OVERSAMPLE = 2

RGB = {
    "red": (214, 39, 40),
    "green": (44, 150, 60),
    "blue": (40, 90, 220),
    "yellow": (245, 205, 40),
    "purple": (140, 60, 180),
    "orange": (255, 127, 14),
    "white": (250, 250, 248),
    "grey": (205, 207, 210),
}

Points = list[tuple[float, float]]


def draw_image(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, `SIDE` pixels high and `aspect` times as wide."""
    width, height = OVERSAMPLE * round(SIDE * scene.aspect), OVERSAMPLE * SIDE
    image = Image.new("RGB", (width, height), RGB[scene.background])
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        box = tuple(value * side / 100 for value, side in zip(thing.box, (width, height) * 2, strict=True))
        _draw_thing(draw, thing, box, RGB[scene.background])  # type: ignore[arg-type]
    return image.reduce(OVERSAMPLE)


def _draw_thing(
    draw: ImageDraw.ImageDraw, thing: Thing, box: tuple[float, float, float, float], paper: tuple[int, int, int]
) -> None:
    """One thing, filling its box in pixels."""
    left, top, right, bottom = box
    ink = RGB[thing.colour]
    if thing.kind != "shape":
        _draw_sign(draw, thing.name, box, ink)
    elif thing.name == "square":
        draw.rectangle(box, fill=ink)
    elif thing.name in ("circle", "ring"):
        draw.ellipse(box, fill=ink)
        if thing.name == "ring":
            rim = (right - left) * 0.26
            draw.ellipse((left + rim, top + rim, right - rim, bottom - rim), fill=paper)
    else:
        corners = {"triangle": _TRIANGLE, "cross": _CROSS, "star": _STAR}[thing.name]
        draw.polygon([(left + x * (right - left), top + y * (bottom - top)) for x, y in corners], fill=ink)


def _draw_sign(
    draw: ImageDraw.ImageDraw, sign: str, box: tuple[float, float, float, float], ink: tuple[int, int, int]
) -> None:
    """A bitmap sign, cell by cell."""
    left, top, right, bottom = box
    wide, high = (right - left) / COLUMNS, (bottom - top) / ROWS
    for row, line in enumerate(GLYPHS[sign]):
        for column, cell in enumerate(line):
            if cell == "#":
                x, y = left + column * wide, top + row * high
                draw.rectangle((x, y, x + wide, y + high), fill=ink)


def _star() -> Points:
    """Ten corners of a five-pointed star, stretched to fill the unit square."""
    raw = [
        (math.sin(math.pi * k / 5) * radius, -math.cos(math.pi * k / 5) * radius)
        for k in range(10)
        for radius in ((1.0, 0.42)[k % 2],)
    ]
    xs, ys = zip(*raw, strict=True)
    return [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in raw]


_STAR = _star()
_TRIANGLE: Points = [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]
_A, _B = 0.33, 0.67
_CROSS: Points = [
    (_A, 0),
    (_B, 0),
    (_B, _A),
    (1, _A),
    (1, _B),
    (_B, _B),
    (_B, 1),
    (_A, 1),
    (_A, _B),
    (0, _B),
    (0, _A),
    (_A, _A),
]
