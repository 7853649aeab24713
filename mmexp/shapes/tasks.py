"""Short questions about a scene. Each is asked only where it has exactly one right answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from mmexp.shapes.glyphs import GLYPHS
from mmexp.shapes.scenes import COLOURS, COMBOS, MOST_THINGS, SHAPES, Scene, Thing, may_occur

SUFFIX = "\nAnswer the question using a single word or phrase."
"""LLaVA-1.5 puts this behind the first short question of a conversation."""

APART = 14
"""Hundredths of the canvas that two centres must differ by for a question about left, right, above or below."""

_YES_NO = ("yes", "no")
_NUMBERS = tuple(map(str, range(MOST_THINGS + 1)))

Turn = tuple[str, str]
"""What a user says and what the assistant answers."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One short question and its only answer."""

    type: str
    text: str
    answer: str
    options: tuple[str, ...]
    """Everything that may be the answer to such a question, in an order that does not tell which it is."""
    about: tuple[Thing, ...] = ()
    """The things one has to look at."""


def ask(scene: Scene, kind: str, rng: Random) -> Question | None:
    """A question of type `kind` (a key of `QUESTIONS`), or None when the scene allows no clear one."""
    return QUESTIONS[kind](scene, rng)


def refer(
    scene: Scene, thing: Thing, rng: Random, attributes: tuple[str, ...] = ("noun", "pair", "full")
) -> str | None:
    """Words that mean `thing` and no other thing of the scene, or None."""
    clear = [attribute for attribute in attributes if thing in scene.unique(attribute)]
    return getattr(thing, rng.choice(clear)) if clear else None


def plural(noun: str) -> str:
    """`circles`, `crosses`"""
    return noun + ("es" if noun.endswith("s") else "s")


def box_text(thing: Thing) -> str:
    """The box as LLaVA writes it: `[0.12, 0.34, 0.56, 0.78]`, shares of width and height."""
    return "[" + ", ".join(f"{value / 100:.2f}" for value in thing.box) + "]"


def _colour(scene: Scene, rng: Random) -> Question | None:
    for thing in rng.sample(scene.things, len(scene.things)):
        sized = [t for t in scene.things if (t.size, t.noun) == (thing.size, thing.noun)]
        phrases = [thing.noun] * (thing in scene.unique("noun")) + [f"{thing.size} {thing.noun}"] * (len(sized) == 1)
        if phrases:
            text = rng.choice(("What colour is the {}?", "What is the colour of the {}?")).format(rng.choice(phrases))
            return Question(type="colour", text=text, answer=thing.colour, options=COLOURS, about=(thing,))
    return None


def _shape(scene: Scene, rng: Random) -> Question | None:
    for thing in rng.sample(scene.things, len(scene.things)):
        sized = [t for t in scene.things if (t.size, t.colour) == (thing.size, thing.colour)]
        phrases = [thing.colour] * (thing in scene.unique("colour")) + [f"{thing.size} {thing.colour}"] * (
            len(sized) == 1
        )
        if thing.kind == "shape" and phrases:
            text = rng.choice(("What shape is the {} object?", "What is the shape of the {} object?"))
            text = text.format(rng.choice(phrases))
            return Question(type="shape", text=text, answer=thing.name, options=SHAPES, about=(thing,))
    return None


def _count(scene: Scene, rng: Random) -> Question | None:
    draw, things = rng.random(), scene.things
    if draw < 0.34:
        text, found = "How many objects are there?", things
    elif draw < 0.67:
        names = [thing.name for thing in things if thing.kind == "shape"]
        name = _value(names, SHAPES, rng)
        text, found = f"How many {plural(name)} are there?", tuple(t for t in things if t.name == name)
    else:
        colour = _value([thing.colour for thing in things], COLOURS, rng)
        text, found = f"How many {colour} objects are there?", tuple(t for t in things if t.colour == colour)
    return Question(type="count", text=text, answer=str(len(found)), options=_NUMBERS, about=found)


def _value(present: list[str], every: tuple[str, ...], rng: Random) -> str:
    """A value to count: often one that occurs twice, sometimes one that is absent."""
    double = [value for value in present if present.count(value) > 1]
    draw = rng.random()
    return rng.choice(double if double and draw < 0.6 else present if present and draw < 0.8 else every)


def _existence(scene: Scene, rng: Random) -> Question | None:
    shapes = [thing for thing in scene.things if thing.kind == "shape"]
    if not shapes:
        return None
    if rng.random() < 0.5:
        special = [thing for thing in shapes if thing.held_out and scene.split == COMBOS]
        thing = rng.choice(special or shapes)
        return Question(type="existence", text=_is_there(thing.pair), answer="yes", options=_YES_NO, about=(thing,))
    colours, names = {thing.colour for thing in scene.things}, {thing.name for thing in shapes}
    absent = [
        (colour, name)
        for colour in COLOURS
        for name in SHAPES
        if all((t.colour, t.name) != (colour, name) for t in shapes) and may_occur(scene.split, colour, name)
    ]
    hard = [(colour, name) for colour, name in absent if colour in colours and name in names]
    near = [(colour, name) for colour, name in absent if colour in colours or name in names]
    pool = hard if hard and rng.random() < 0.5 else near if near and rng.random() < 0.6 else absent
    return Question(type="existence", text=_is_there(" ".join(rng.choice(pool))), answer="no", options=_YES_NO)


def _is_there(pair: str) -> str:
    return f"Is there {'an' if pair[0] in 'aeiou' else 'a'} {pair}?"


def _two(scene: Scene, rng: Random) -> tuple[Thing, str, Thing, str] | None:
    """Two things with words for each."""
    if len(scene.things) < 2:
        return None
    one, other = rng.sample(scene.things, 2)
    first, second = refer(scene, one, rng, ("noun", "pair")), refer(scene, other, rng, ("noun", "pair"))
    return (one, first, other, second) if first and second else None


def _relation(scene: Scene, rng: Random) -> Question | None:
    for _ in range(6):
        pair = _two(scene, rng)
        axis = rng.choice((0, 1))
        if pair and abs(pair[0].centre[axis] - pair[2].centre[axis]) >= APART:
            before = pair[0].centre[axis] < pair[2].centre[axis]
            words = (("left", "right"), ("above", "below"))[axis]
            form = ("Is the {} to the left or to the right of the {}?", "Is the {} above or below the {}?")[axis]
            text, answer = form.format(pair[1], pair[3]), words[0 if before else 1]
            about = pair[0], pair[2]
            return Question(type="relation", text=text, answer=answer, options=words, about=about)
    return None


def _comparison(scene: Scene, rng: Random) -> Question | None:
    for _ in range(6):
        pair = _two(scene, rng)
        if pair is None:
            continue
        one, first, other, second = pair
        if rng.random() < 0.5 and one.size != other.size:
            text, answer = f"Is the {first} larger than the {second}?", one.size == "large"
        elif first == one.noun and second == other.noun and (one.colour == other.colour or rng.random() < 0.4):
            text, answer = f"Do the {first} and the {second} have the same colour?", one.colour == other.colour
        else:
            continue
        said = _YES_NO[0 if answer else 1]
        return Question(type="comparison", text=text, answer=said, options=_YES_NO, about=(one, other))
    return None


def _reading(scene: Scene, rng: Random) -> Question | None:
    for thing in rng.sample(scene.things, len(scene.things)):
        alone = len([t for t in scene.things if t.kind == thing.kind]) == 1
        tinted = len([t for t in scene.things if (t.kind, t.colour) == (thing.kind, thing.colour)]) == 1
        texts = [f"What {thing.kind} is shown?"] * alone + [f"What {thing.kind} is written in {thing.colour}?"] * tinted
        if thing.kind != "shape" and texts:
            signs = tuple(sorted(sign for sign in GLYPHS if sign.isdigit() == (thing.kind == "digit")))
            return Question(type="reading", text=rng.choice(texts), answer=thing.name, options=signs, about=(thing,))
    return None


QUESTIONS: dict[str, Callable[[Scene, Random], Question | None]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "existence": _existence,
    "relation": _relation,
    "comparison": _comparison,
    "reading": _reading,
}
"""The question types, in the order of the reports."""
