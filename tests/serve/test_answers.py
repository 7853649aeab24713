"""Text as it comes, and batches that may not decide what is said."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mmexp.engine import Generator
from mmexp.llm import Sampling, TinyLlmConfig
from mmexp.llm.generation import TextStream
from mmexp.serve.answers import Answer, Answers
from mmexp.serve.batcher import Batcher, Done, Event, Job, Piece
from mmexp.serve.errors import ApiError
from tests.serve.client import sample

TOKENIZER = TinyLlmConfig().load_tokenizer()


@pytest.mark.parametrize(
    ("said", "stops", "answer"),
    [
        (" two words \n", (), "two words"),
        ("café ☕ au lait", (), "café ☕ au lait"),
        ("one### two", ("###",), "one"),
        ("one# two##", ("###",), "one# two##"),
        ("so it ends.\nHuman: no", ("\nHuman:", "zzz"), "so it ends."),
        ("ab", ("abc",), "ab"),
        ("x abc y", ("c", "bc", "abc"), "x"),
    ],
)
def test_pieces_of_text_are_final_and_together_the_answer(said: str, stops: Sequence[str], answer: str) -> None:
    pieces: list[str] = []
    stream = TextStream(TOKENIZER, pieces.append, stops)
    for token in TOKENIZER(said, add_special_tokens=False)["input_ids"]:
        stream.add([token])
        assert answer.startswith("".join(pieces))
        if stream.is_stopped:
            break
    stream.end()
    assert "".join(pieces) == answer
    assert len(pieces) > 1 or len(answer) < 3


def test_broken_characters_at_the_end_are_handed_out_too() -> None:
    pieces: list[str] = []
    stream = TextStream(TOKENIZER, pieces.append)
    ids = TOKENIZER("a☕", add_special_tokens=False)["input_ids"][:-1]
    for token in ids:
        stream.add([token])
    assert "".join(pieces) == "a"
    stream.end()
    assert "".join(pieces) == TOKENIZER.decode(ids)


def test_two_tokens_as_close_as_rounding_are_left_to_one_alone() -> None:
    rows = [Answer(TOKENIZER, lambda text: None, (), 8, lambda: False) for _ in range(3)]
    watch = Answers(rows, ends=[2], rounding=2**-23)
    scores = torch.zeros(3, 259)
    scores[0, 70], scores[1, 70], scores[2, 70] = 9.0, 9.0, 9.0
    scores[0, 71], scores[1, 71], scores[2, 71] = 8.9, 9.0 - 1e-6, -torch.inf
    watch.look(scores)
    assert watch.take(torch.tensor([70, 70, 2])).tolist() == [False, True, True]
    assert [row.finish for row in rows] == [None, "again", "stop"]
    assert [row.num_tokens for row in rows] == [1, 0, 1]


class Listener:
    """The events of one job."""

    def __init__(self) -> None:
        self.text, self.end, self.over = "", None, threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Piece):
            self.text += event.text
        else:
            self.end = event
            self.over.set()


def jobs_of(generator: Generator, pictures: list[Path], number: int) -> tuple[list[Job], list[Listener]]:
    draw, jobs, heard = random.Random(1), [], []
    for index in range(number):
        text = "".join(draw.choice("What? ") for _ in range(draw.randint(1, 40)))
        turns = sample(text, pictures[index % len(pictures)]).turns
        heard.append(Listener())
        jobs.append(Job(item=generator.plan.processor.encode_prompt(turns), stops=(), on_event=heard[-1],
                        sampling=Sampling(max_new_tokens=8 + index % 5), deadline=time.monotonic() + 100))  # fmt: skip
    return jobs, heard


@pytest.mark.parametrize("rounding", [None, 2**-23, 2**-11, 1.0], ids=["off", "float32", "rough", "all"])
def test_batches_say_what_one_alone_says(generator: Generator, pictures: list[Path], rounding: float | None) -> None:
    batcher = Batcher(generator, 8, exact=True)
    batcher._rounding = rounding
    jobs, heard = jobs_of(generator, pictures, 24)
    for job in jobs:
        batcher.put(job)
    assert all(one.over.wait(60) for one in heard)
    batcher.close()
    for job, one in zip(jobs, heard, strict=True):
        alone = generator.model.generate(
            generator.collate([job.item]), generator.plan.hf_tokenizer, generator.ending(job.sampling)
        )
        assert one.text == alone[0]
        assert isinstance(one.end, Done)
        assert one.end.num_tokens <= job.sampling.max_new_tokens
    assert len({one.text for one in heard}) > 6
    assert (batcher.num_again > 0) == (rounding in (2**-11, 1.0)) or rounding == 2**-23
    assert batcher.num_answers == 24
    if rounding is None:
        assert batcher.num_batches <= 5


def test_what_breaks_a_batch_fails_alone(generator: Generator, pictures: list[Path]) -> None:
    batcher = Batcher(generator, 8, exact=True)
    jobs, heard = jobs_of(generator, pictures, 8)
    jobs[3].item.input_ids[:] = 10**6  # no such token: the model raises
    for job in jobs:
        batcher.put(job)
    assert all(one.over.wait(60) for one in heard)
    assert [isinstance(one.end, ApiError) for one in heard] == [index == 3 for index in range(8)]
    more, heard = jobs_of(generator, pictures, 1)
    batcher.put(more[0])
    assert heard[0].over.wait(30), "the thread lives on"
    batcher.close()


def test_an_answer_that_nobody_waits_for_ends(generator: Generator, pictures: list[Path]) -> None:
    batcher = Batcher(generator, 8, exact=True)
    jobs, heard = jobs_of(generator, pictures, 2)
    jobs[0].left.set()
    jobs[1].deadline = time.monotonic() - 1
    for job in jobs:
        batcher.put(job)
    batcher.close()
    assert batcher.num_batches == 0
    assert [one.end for one in heard] == [None, None]
