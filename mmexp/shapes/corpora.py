"""What the two shipped parts were pretrained on, each without the other: texts without pictures, and pictures with
lists of what is true of them."""

from __future__ import annotations

from collections import Counter
from random import Random

from mmexp.shapes.rows import Row, conversation, image_row, talk
from mmexp.shapes.scenes import Scene
from mmexp.shapes.talk import box_turns, question_turns, words
from mmexp.shapes.tasks import Turn, plural

PAIRS_PROMPT = "List what is true of the picture."

COARSE = 5
"""Hundredths of the canvas that edges are rounded to in lines: a text as fine as 0.01 is too rare to be contrasted."""

PLAIN: tuple[Turn, ...] = (
    ("Hello!", "Hello! You can ask me about a picture."),
    ("Hi, who are you?", "I am a small language model that knows about coloured shapes."),
    ("Thank you.", "You are welcome."),
    ("What shapes do you know?", "I know the circle, the square, the triangle, the star, the cross and the ring."),
    ("What colours do you know?", "I know red, green, blue, yellow, purple and orange."),
    ("Can you read?", "Yes, I can read single letters and digits."),
    ("What is a caption?", "A caption is one sentence that says what a picture shows."),
    ("What does a bounding box mean?", "It is the left, top, right and bottom edge of an object."),
    ("Goodbye.", "Goodbye!"),
)
"""Talk about nothing in particular."""


def text_row(scene: Scene) -> Row:
    """A conversation about a scene that is described in words where a picture would stand."""
    rng = scene.rng("text")
    draw = rng.random()
    described = words(scene, rng)
    if draw < 0.02:
        name, before, turns = "plain", "", rng.sample(PLAIN, 2)
    elif draw < 0.55:
        name, before, turns = "questions", described, question_turns(scene, rng)
    elif draw < 0.8:
        name, before, turns = "boxes", described, box_turns(scene, rng)
    else:
        (name, turns), before = talk(scene, "text-talk"), described
    said = conversation(before, turns)
    return {"id": f"{scene.split}-{scene.index:06d}-{name}", "conversations": said, "type": name}


def pair_row(scene: Scene) -> Row:
    """A picture and one line for each thing that is true of it. A line that is missing is false."""
    return image_row(scene, "pair", [(PAIRS_PROMPT, "\n".join(lines(scene, scene.rng("pair"))))])


def lines(scene: Scene, rng: Random) -> list[str]:
    """Short statements: what there is, where its edges are, and how many of each."""
    result = [f"{scene.background} background", _number(len(scene.things), "object")]
    for thing in scene.things:
        left, top, right, bottom = (f"{round(value / COARSE) * COARSE / 100:.2f}" for value in thing.box)
        result += [thing.full, thing.pair]
        result.append(f"{rng.choice((thing.noun, thing.pair))} across [{left}, {right}]")
        result.append(f"{rng.choice((thing.noun, thing.pair))} down [{top}, {bottom}]")
    shapes = Counter(thing.name for thing in scene.things if thing.kind == "shape")
    result += [_number(count, name) for name, count in shapes.items()]
    colours = Counter(thing.colour for thing in scene.things)
    result += [_number(count, f"{colour} object") for colour, count in colours.items()]
    return list(dict.fromkeys(result))


def _number(count: int, noun: str) -> str:
    return f"{count} {noun if count == 1 else plural(noun)}"
