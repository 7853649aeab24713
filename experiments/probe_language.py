"""What a language part can do with a scene in the words of a perfect eye: questions and boxes about new scenes.

    PYTHONPATH=experiments/oracle python experiments/probe_language.py RUN [SCENES]

RUN is a finished run of `experiments=shapes_language`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import torch
from word_grid import picture

from mmexp.assemble import experiment_of_run, finished_run
from mmexp.config import conf_dir, registered_targets
from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.engine import Generator, load_weights
from mmexp.llm import Sampling
from mmexp.shapes import draw_scene
from mmexp.shapes.talk import FIND_PROMPT
from mmexp.shapes.tasks import QUESTIONS, SUFFIX, ask, box_text, refer

SPLIT = "text_probe"


def generator(path: str) -> Generator:
    """The part with its perfect eye, ready to answer."""
    exp = experiment_of_run(path, registered_targets([conf_dir(), Path(__file__).with_name("oracle")]))
    model = exp.plan.build()
    load_weights(model.parts(), finished_run(path, "run"))
    return Generator(model.eval(), exp.plan)


def exchanges(count: int) -> list[tuple[str, Turn, str]]:
    """Kind, what the user says, and the right answer: one of every kind for each scene that allows it."""
    found = []
    for index in range(count):
        scene = draw_scene(0, SPLIT, index)
        rng = scene.rng("probe")
        said = []
        for kind in QUESTIONS:
            question = ask(scene, kind, rng)
            if question:
                said.append((kind, question.text + SUFFIX, question.answer))
        thing = rng.choice(scene.things)
        phrase = refer(scene, thing, rng)
        if phrase:
            said.append(("box", FIND_PROMPT.format(phrase), box_text(thing)))
        seen = Medium(source=picture(scene))
        for kind, text, answer in said:
            found.append((kind, Turn(role="user", parts=(seen, Text(text=f"\n{text}"))), answer))
    return found


def main(path: str, count: int = 60) -> None:
    """Prints the share of exact answers of every kind."""
    model = generator(path)
    asked = exchanges(count)
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(asked), 64):
        chunk = asked[start : start + 64]
        samples = [Sample(id=str(start + n), dataset=SPLIT, turns=(said,)) for n, (_, said, _) in enumerate(chunk)]
        answers = model.predict(samples, Sampling(max_new_tokens=24))
        for (kind, _, wanted), answer in zip(chunk, answers, strict=True):
            right[kind].append(answer == wanted)
    print("| kind | exact | asked |\n|---|---|---|")
    for kind, marks in right.items():
        print(f"| {kind} | {sum(marks) / len(marks):.3f} | {len(marks)} |")
    questions = [mark for kind in QUESTIONS for mark in right[kind]]
    print(f"| all questions | {sum(questions) / len(questions):.3f} | {len(questions)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], *map(int, sys.argv[2:]))
