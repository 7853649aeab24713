"""What stands in a picture: a scene is drawn by lot, the same one for ever for a given seed, split and index."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from mmexp.shapes.glyphs import COLUMNS, GLYPHS, ROWS

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SIDES = {"small": (20, 24), "large": (34, 40)}
"""Side of a thing in hundredths of the canvas, per size word; the two ranges lie clearly apart."""
STEP = 2
"""Hundredths of the canvas that every edge is a multiple of: half as many numbers, each seen twice as often. Only the
pictures that the vision part learns from stand anywhere."""
BACKGROUNDS = ("white", "grey")
MOST_THINGS = 4
"""Things of a scene; there is at least one."""

HELD_OUT = frozenset(
    {("red", "star"), ("green", "cross"), ("blue", "triangle"), ("yellow", "ring"), ("purple", "square")}
)
"""Colour-shape pairs that no training picture has, nor anything said of one. Every colour and every shape occurs."""

PRETRAIN = "pretrain"
"""The split that the vision part learns from."""

TEXT = "text"
"""The split that the language part learns from, which is never drawn: a language model has read of every pair."""

COMBOS = "heldout_combos"
"""The split whose pictures contain at least one pair of `HELD_OUT`; no other picture contains any."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene."""

    kind: Literal["shape", "letter", "digit"]
    name: str
    """The shape's word, or the sign itself."""
    colour: str
    size: str
    box: Box
    """Left, top, right, bottom in hundredths of the canvas; exactly what is drawn."""

    @property
    def noun(self) -> str:
        """`circle`, `letter A`, `digit 7`"""
        return self.name if self.kind == "shape" else f"{self.kind} {self.name}"

    @property
    def pair(self) -> str:
        """Colour and noun: `red circle`"""
        return f"{self.colour} {self.noun}"

    @property
    def full(self) -> str:
        """Size, colour and noun: `small red circle`"""
        return f"{self.size} {self.pair}"

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, in hundredths."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def place(self) -> str:
        """One of nine words for where it stands: `top left`, `left`, `center`, ..."""
        column, row = (0 if value < 38 else 2 if value > 62 else 1 for value in self.centre)
        words = (("top ", "", "bottom ")[row] + ("left", "", "right")[column]).strip()
        return words or "center"

    @property
    def held_out(self) -> bool:
        """Whether its colour and shape are one of the pairs kept from training."""
        return (self.colour, self.name) in HELD_OUT


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All things of one picture, from left to right, and the paper they lie on."""

    seed: int
    split: str
    index: int
    things: tuple[Thing, ...]
    background: str
    aspect: float = 1.0
    """Width of the canvas in heights. Boxes are in hundredths of the width and of the height."""

    def rng(self, purpose: str) -> Random:
        """A generator of its own for every use of this scene, so that uses do not disturb each other."""
        return Random(f"{self.seed}/{self.split}/{self.index}/{purpose}")

    def unique(self, attribute: str) -> list[Thing]:
        """The things whose value of `attribute` no other thing of the scene shares."""
        values = [getattr(thing, attribute) for thing in self.things]
        return [thing for thing, value in zip(self.things, values, strict=True) if values.count(value) == 1]


def draw_scene(seed: int, split: str, index: int, aspect: float = 1.0) -> Scene:
    """The scene number `index` of a split, on a canvas `aspect` times as wide as high."""
    rng = Random(f"{seed}/{split}/{index}")
    wanted = rng.choices(range(1, MOST_THINGS + 1), (15, 30, 30, 25))[0]
    forced = rng.choice(sorted(HELD_OUT)) if split == COMBOS else None
    things: list[Thing] = []
    may_overlap = rng.random() < 0.25
    for number in range(wanted):
        identity = ("shape", forced[1], forced[0]) if forced and not number else _identity(rng, split, things)
        thing = _placed(rng, identity, things, may_overlap, 1 if split == PRETRAIN else STEP, aspect)
        if thing is not None:
            things.append(thing)
    things.sort(key=lambda thing: (thing.centre, thing.box))
    background = rng.choice(BACKGROUNDS)
    return Scene(seed=seed, split=split, index=index, things=tuple(things), background=background, aspect=aspect)


def _identity(rng: Random, split: str, things: list[Thing]) -> tuple[str, str, str]:
    """Kind, name and colour; some repeat what is there, so that counting and comparing have something to do."""
    while True:
        colour, name, kind = rng.choice(COLOURS), rng.choice(SHAPES), "shape"
        draw = rng.random()
        signs = sum(thing.kind != "shape" for thing in things)
        if draw < 0.24 and signs < 2:
            name = rng.choice(sorted(GLYPHS))
            kind = "digit" if name.isdigit() else "letter"
        elif draw < 0.45 and things and things[-1].kind == "shape":
            name = things[-1].name
        elif draw < 0.6 and things:
            colour = things[-1].colour
        if may_occur(split, colour, name):
            return kind, name, colour


def may_occur(split: str, colour: str, name: str) -> bool:
    """Whether scenes of this split have things of this colour and name, and questions about them."""
    return split in (COMBOS, TEXT) or (colour, name) not in HELD_OUT


def _placed(
    rng: Random, identity: tuple[str, str, str], things: list[Thing], may_overlap: bool, step: int, aspect: float
) -> Thing | None:
    """The thing at a free place, or None when the canvas is too full for it. Its edges are multiples of `step`."""
    kind, name, colour = identity
    crowded = sum(thing.size == "large" for thing in things) >= 2
    for _ in range(40):
        size = "small" if crowded else rng.choice(tuple(SIDES))
        smallest, largest = SIDES[size]
        height = rng.randrange(smallest, largest + 1, step)
        slimness = 1 if kind == "shape" else COLUMNS / ROWS
        width = step * round(height * slimness / aspect / step)
        left, top = rng.randrange(step, 100 - width, step), rng.randrange(step, 100 - height, step)
        box = (left, top, left + width, top + height)
        shares = [overlap_share(box, thing.box) for thing in things]
        if max(shares, default=0.0) <= (0.12 if may_overlap else 0.0):
            return Thing(kind=kind, name=name, colour=colour, size=size, box=box)  # type: ignore[arg-type]
    return None


def overlap_share(one: Box, other: Box) -> float:
    """The common area as a share of the smaller box, 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / min(areas)
