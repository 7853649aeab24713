"""Scenes and conversations as LLaVA JSON rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from random import Random
from typing import Any

from mmexp.shapes.chinese import CHINESE_PROMPT, chinese_caption
from mmexp.shapes.scenes import COMBOS, Scene
from mmexp.shapes.talk import (
    CAPTION_PROMPTS,
    FIND_PROMPT,
    box_turns,
    caption,
    caption_turns,
    captions,
    chat_turns,
    detail_turns,
    located,
    question_turns,
)
from mmexp.shapes.tasks import QUESTIONS, SUFFIX, Question, Turn, ask, box_text, refer

Row = dict[str, Any]
Draw = Callable[[str, int], Scene]
"""From a split and a number to the scene."""

TALKS: dict[str, Callable[[Scene, Random], list[Turn]]] = {
    "questions": question_turns,
    "boxes": box_turns,
    "caption": caption_turns,
    "detail": detail_turns,
    "chat": chat_turns,
}
"""Per kind of conversation how to hold it."""

SHARES = {"questions": 48, "boxes": 20, "caption": 18, "detail": 6, "chat": 8}
"""Share of each kind among the conversations about pictures, in percent."""


LOCATED = 0.3
"""Share of the alignment captions that say where things are. Without them nothing about places would be aligned."""


def image_path(scene: Scene) -> str:
    """Where the picture of a scene lies below the root of the world."""
    return f"images/{scene.split}/{scene.index:06d}.png"


def image_row(scene: Scene, name: str, turns: list[Turn], **further: Any) -> Row:
    """A row about a picture."""
    row = {"id": f"{scene.split}-{scene.index:06d}-{name}", "image": image_path(scene)}
    return row | {"conversations": conversation("<image>", turns)} | further


def conversation(before: str, turns: list[Turn]) -> list[dict[str, str]]:
    """The turns in LLaVA's form; `before` (the picture or words in its place) stands on a line before the first."""
    said = []
    for number, (question, answer) in enumerate(turns):
        lines = [before] * (number == 0 and bool(before)) + [question]
        said += [{"from": "human", "value": "\n".join(lines)}, {"from": "gpt", "value": answer}]
    return said


def align_row(scene: Scene) -> Row:
    """A picture and its caption, some with boxes; the question is there for templates that use one."""
    rng = scene.rng("align")
    text = located(scene) if rng.random() < LOCATED else caption(scene, rng)
    return image_row(scene, "align", [(rng.choice(CAPTION_PROMPTS), text)])


def chinese_row(scene: Scene) -> Row:
    """A picture and its caption in Chinese."""
    return image_row(scene, "align_zh", [(CHINESE_PROMPT, chinese_caption(scene, scene.rng("chinese")))])


def short_row(scene: Scene) -> Row:
    """A picture and a caption that names no places, as those of COCO."""
    rng = scene.rng("caption")
    return image_row(scene, "caption", [(rng.choice(CAPTION_PROMPTS), caption(scene, rng))])


def talk(scene: Scene, purpose: str, shares: Mapping[str, int]) -> tuple[str, list[Turn]]:
    """A conversation of a kind drawn by lot, with the name of its kind."""
    rng = scene.rng(purpose)
    while True:
        name = rng.choices(tuple(shares), tuple(shares.values()))[0]
        turns = TALKS[name](scene, rng)
        if turns:
            return name, turns


def instruct_row(scene: Scene) -> Row:
    """A picture and a conversation of some kind about it."""
    name, turns = talk(scene, "instruct", SHARES)
    return image_row(scene, f"instruct-{name}", turns, type=name)


def task_places(task: str, count: int) -> range:
    """Which of `count` training pictures a kind of conversation has to itself, as many as `SHARES` says."""
    ends = [count * end // sum(SHARES.values()) for end in accumulate(SHARES.values(), initial=0)]
    place = list(SHARES).index(task)
    return range(ends[place], ends[place + 1])


def task_row(scene: Scene, task: str) -> Row:
    """A picture and a conversation of this kind about it."""
    return image_row(scene, task, talk(scene, "task", {task: 1})[1], type=task)


CLOSED = {"existence": 2, "comparison": 2, "relation": 4}
"""Question types with few possible answers, and how many: in a benchmark each answer is right equally often."""


def vqa_rows(draw: Draw, split: str, per_type: int) -> Iterator[Row]:
    """`per_type` single questions of every type, each about a picture of its own."""
    index = 0
    for kind in QUESTIONS:
        found: Counter[str] = Counter()
        most = math.ceil(per_type / CLOSED.get(kind, 1))
        while found.total() < per_type:
            scene = draw(split, index)
            index += 1
            question = _question(scene, kind)
            if question is not None and found[question.answer] < most:
                found[question.answer] += 1
                turns = [(question.text + SUFFIX, question.answer)]
                answers = {"targets": [question.answer], "options": list(question.options)}
                yield image_row(scene, "vqa", turns, type=kind, **answers)


def _question(scene: Scene, kind: str) -> Question | None:
    """A question of this type; about the unseen pair, where the split has one."""
    rng = scene.rng("vqa")
    asked = [question for question in (ask(scene, kind, rng) for _ in range(12)) if question]
    special = [question for question in asked if any(thing.held_out for thing in question.about)]
    pool = special if scene.split == COMBOS and special and kind != "existence" else asked
    return pool[0] if pool else None


def caption_rows(draw: Draw, split: str, count: int) -> Iterator[Row]:
    """Pictures to be captioned; every phrasing is accepted."""
    for index in range(count):
        scene = draw(split, index)
        targets = captions(scene)
        yield image_row(scene, "caption", [(CAPTION_PROMPTS[0], targets[0])], type="caption", targets=targets)


def retrieval_rows(draw: Draw, split: str, count: int) -> Iterator[Row]:
    """Pictures with one caption each; no caption says the same of two pictures."""
    index, said = 0, set[str]()
    while len(said) < count:
        scene = draw(split, index)
        index += 1
        text = captions(scene)[0]
        if text not in said:
            said.add(text)
            yield image_row(scene, "retrieval", [(CAPTION_PROMPTS[0], text)], type="retrieval")


def grounding_rows(draw: Draw, split: str, count: int) -> Iterator[Row]:
    """Phrases whose box is to be found."""
    index = found = 0
    while found < count:
        scene = draw(split, index)
        index += 1
        rng = scene.rng("grounding")
        things = [thing for thing in scene.things if thing.held_out] if split == COMBOS else list(scene.things)
        phrases = [(thing, refer(scene, thing, rng)) for thing in rng.sample(things, len(things))]
        thing, phrase = next(((t, p) for t, p in phrases if p), (None, None))
        if thing is None:
            continue
        found += 1
        turns = [(FIND_PROMPT.format(phrase), box_text(thing))]
        box = [value / 100 for value in thing.box]
        yield image_row(scene, "grounding", turns, type=thing.size, targets=[box_text(thing)], box=box)
