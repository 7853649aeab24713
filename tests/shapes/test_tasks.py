"""Questions, answers and conversations: right, clear, balanced, and true to LLaVA's forms."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from random import Random

import pytest

from mmexp.shapes.corpora import pair_row
from mmexp.shapes.rows import CLOSED, SHARES, TALKS, conversation, instruct_row, vqa_rows
from mmexp.shapes.scenes import HELD_OUT, draw_scene
from mmexp.shapes.talk import captions, listing, question_turns
from mmexp.shapes.tasks import APART, QUESTIONS, SUFFIX, ask, box_text, refer
from tests.shapes.test_scenes import scene_of, thing_of

CIRCLE = thing_of("circle", "red", left=5, top=5)
SQUARE = thing_of("square", "blue", left=55, top=50, side=36)
LETTER = thing_of("A", "green", left=70, top=10)


def answers(scene, kind: str) -> dict[str, str]:
    """All questions of a type that come up, with their answers."""
    asked = (ask(scene, kind, Random(number)) for number in range(200))
    return {question.text: question.answer for question in asked if question}


def test_known_answers() -> None:
    scene = scene_of(CIRCLE, LETTER, SQUARE)
    assert answers(scene, "colour")["What colour is the circle?"] == "red"
    assert answers(scene, "shape")["What shape is the blue object?"] == "square"
    assert answers(scene, "count")["How many objects are there?"] == "3"
    assert answers(scene, "count")["How many stars are there?"] == "0"
    assert answers(scene, "existence")["Is there a red circle?"] == "yes"
    assert answers(scene, "existence")["Is there a red square?"] == "no"
    assert answers(scene, "relation")["Is the circle to the left or to the right of the square?"] == "left"
    assert answers(scene, "relation")["Is the square above or below the circle?"] == "below"
    assert answers(scene, "comparison")["Is the square larger than the circle?"] == "yes"
    assert answers(scene, "comparison")["Do the circle and the square have the same colour?"] == "no"
    assert answers(scene, "reading") == {"What letter is shown?": "A", "What letter is written in green?": "A"}


def test_a_phrase_that_fits_two_things_is_never_used() -> None:
    twin = thing_of("circle", "red", left=5, top=60)
    assert refer(scene_of(CIRCLE, twin), CIRCLE, Random(0)) is None
    assert answers(scene_of(CIRCLE, twin), "colour") == {}
    assert answers(scene_of(CIRCLE, twin), "relation") == {}
    blue = thing_of("circle", "blue", left=5, top=60)
    assert refer(scene_of(CIRCLE, blue), CIRCLE, Random(0)) in ("red circle", "small red circle")


def test_no_relation_between_things_at_nearly_the_same_height() -> None:
    level = thing_of("square", "blue", left=60, top=5 + APART - 1)
    assert all("above" not in text for text in answers(scene_of(CIRCLE, level), "relation"))


@pytest.mark.parametrize("kind", QUESTIONS)
def test_answers_are_balanced(kind: str) -> None:
    """A model that cannot see must not get far: the most frequent answer to the same words stays near chance."""
    asked = [ask(scene, kind, scene.rng("test")) for scene in (draw_scene(1, "train", i) for i in range(2500))]
    found = [question for question in asked if question]
    assert len(found) > 600
    per_form: dict[str, Counter[str]] = {}
    for question in found:
        per_form.setdefault(" ".join(question.text.split()[:2]), Counter())[question.answer] += 1
    guessed = sum(counter.most_common(1)[0][1] for counter in per_form.values())
    assert guessed / len(found) <= (0.62 if kind in ("existence", "comparison", "relation") else 0.5)


def test_training_says_nothing_of_held_out_pairs() -> None:
    spoken = re.compile("|".join(f"{colour} {shape}" for colour, shape in sorted(HELD_OUT)))
    for index in range(800):
        rows = [make(draw_scene(0, split, index)) for make, split in ((instruct_row, "train"), (pair_row, "pretrain"))]
        for row in rows:
            assert not spoken.search(" ".join(said["value"] for said in row["conversations"])), row["id"]


def test_listing_and_captions() -> None:
    twin = thing_of("circle", "red", left=5, top=60)
    scene = scene_of(CIRCLE, twin, SQUARE)
    assert listing(scene) == "two small red circles and a large blue square"
    assert listing(scene_of(CIRCLE)) == "a small red circle"
    assert len(set(captions(scene))) == 5
    assert captions(scene)[0] == "Two small red circles and a large blue square."


def test_boxes_are_written_as_in_llava() -> None:
    assert box_text(CIRCLE) == "[0.05, 0.05, 0.27, 0.27]"


def test_several_short_questions_in_one_conversation() -> None:
    turns = question_turns(draw_scene(0, "train", 3), Random(0))
    assert len(turns) == 10
    assert len({question for question, _ in turns}) == 10
    assert turns[0][0].endswith(SUFFIX)
    assert not any(question.endswith(SUFFIX) for question, _ in turns[1:])


def test_the_picture_stands_before_the_first_question() -> None:
    said = conversation("<image>", [("One?", "1"), ("Two?", "2")])
    assert [one["value"] for one in said] == ["<image>\nOne?", "1", "Two?", "2"]
    assert [one["from"] for one in said] == ["human", "gpt", "human", "gpt"]


def test_training_holds_every_kind_of_conversation() -> None:
    kinds = Counter(instruct_row(draw_scene(0, "train", index))["type"] for index in range(1000))
    assert set(kinds) == set(TALKS)
    assert all(abs(kinds[name] / 10 - share) < 5 for name, share in SHARES.items())


def test_a_pair_row_names_every_thing_and_its_box() -> None:
    answer = pair_row(scene_of(CIRCLE, SQUARE))["conversations"][1]["value"]
    assert answer.splitlines() == [f"{thing.full} {box_text(thing)}" for thing in (CIRCLE, SQUARE)]


@pytest.mark.parametrize(("kind", "number"), CLOSED.items())
def test_closed_questions_of_a_benchmark_have_every_answer_equally_often(kind: str, number: int) -> None:
    rows = [row for row in vqa_rows(partial(draw_scene, 0), "heldout_images", 4 * number) if row["type"] == kind]
    assert set(Counter(row["targets"][0] for row in rows).values()) == {4}
    assert {tuple(row["options"]) for row in rows} == (
        {("left", "right"), ("above", "below")} if kind == "relation" else {("yes", "no")}
    )


def test_vqa_rows_of_unseen_combinations_ask_about_them() -> None:
    rows = list(vqa_rows(partial(draw_scene, 0), "heldout_combos", 12))
    assert Counter(row["type"] for row in rows) == dict.fromkeys(QUESTIONS, 12)
    assert all(row["targets"] == [row["conversations"][1]["value"]] for row in rows)
    assert all(row["targets"][0] in row["options"] for row in rows)
    shapes = [row for row in rows if row["type"] == "shape"]
    spoken = [(row["conversations"][0]["value"].split(" object?")[0].split()[-1], row["targets"][0])
              for row in shapes]  # fmt: skip
    assert sum(pair in HELD_OUT for pair in spoken) >= len(shapes) / 2
