"""What the shipped vision part was pretrained on: pictures with phrases for their parts."""

from __future__ import annotations

from mmexp.shapes.rows import Row, image_row
from mmexp.shapes.scenes import Scene
from mmexp.shapes.tasks import box_text

PAIRS_PROMPT = "List what is in the picture."


def pair_row(scene: Scene) -> Row:
    """A picture and one line for each thing in it: a phrase and its box."""
    return image_row(
        scene, "pair", [(PAIRS_PROMPT, "\n".join(f"{thing.full} {box_text(thing)}" for thing in scene.things))]
    )
