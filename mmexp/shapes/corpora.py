"""What the two shipped parts were pretrained on, each without the other: texts without pictures, and pictures with
phrases for their parts."""

from __future__ import annotations

from mmexp.shapes.rows import Row, conversation, image_row, talk
from mmexp.shapes.scenes import Scene
from mmexp.shapes.talk import box_turns, question_turns, words
from mmexp.shapes.tasks import Turn, box_text

PAIRS_PROMPT = "List what is in the picture."

TEXT_SHARES = {"questions": 50, "boxes": 26, "caption": 8, "detail": 6, "chat": 10}
"""Share of each kind among the conversations that are not drawn as questions or boxes, in percent."""

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
    """A conversation about a scene that is described in words where a picture would stand.

    The words are records without an order, as what a patch tells of a thing has none: a model that has learnt to copy
    a box out of a running text looks for running text in a picture, too, and learns to point much later.
    """
    rng = scene.rng("text")
    draw = rng.random()
    before = words(scene, rng)
    if draw < 0.02:
        name, before, turns = "plain", "", rng.sample(PLAIN, 2)
    elif draw < 0.5:
        name, turns = "questions", question_turns(scene, rng)
    elif draw < 0.8:
        name, turns = "boxes", box_turns(scene, rng)
    else:
        name, turns = talk(scene, "text-talk", TEXT_SHARES)
    said = conversation(before, turns)
    return {"id": f"{scene.split}-{scene.index:06d}-{name}", "conversations": said, "type": name}


def pair_row(scene: Scene) -> Row:
    """A picture and one line for each thing in it: a phrase and its box."""
    return image_row(
        scene, "pair", [(PAIRS_PROMPT, "\n".join(f"{thing.full} {box_text(thing)}" for thing in scene.things))]
    )
