"""Several runs, one question: the same input, answers of their own, one clear refusal."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.demo import Desk
from mmexp.demo.desk import Exchange, Visit
from mmexp.engine import Generator
from mmexp.llm import Sampling
from mmexp.serve.errors import ApiError

HOW = {"temperature": 0, "top_p": 1.0, "repetition_penalty": 1.0, "max_tokens": 12}
LONG = {**HOW, "temperature": 1.5, "max_tokens": 500}


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token ends an answer, which a sampled one meets by chance at any time."""
    monkeypatch.setattr(Generator, "ending", lambda _, sampling: sampling)


def say(desk: Desk, visit: Visit, question: str, how: dict[str, Any] = HOW) -> Exchange:
    """Asks, waits for all of the answers, and keeps them."""
    exchange = desk.ask(visit, question, how)
    *_, texts = exchange
    assert list(texts) == exchange.texts
    desk.keep(visit, exchange)
    return exchange


def alone(generator: Generator, *turns: Turn) -> str:
    return generator.predict([Sample(id="alone", turns=turns)], Sampling(max_new_tokens=12))[0]


def user(text: str, *pictures: bytes) -> Turn:
    media = tuple(Medium(source=picture) for picture in pictures)
    return Turn(role="user", parts=(*media, Text(text=f"\n{text}" if media else text)))


def test_two_runs_read_the_same_and_keep_their_own_history(
    desk_of: Callable[..., Desk], generator: Generator, second: Generator, pictures: list[Path]
) -> None:
    desk, picture, visit = desk_of(generator, second), pictures[3].read_bytes(), Visit()
    visit.picture = picture
    first = say(desk, visit, " What? ")
    assert first.texts == [alone(one, user("What?", picture)) for one in (generator, second)]
    assert first.texts[0] != first.texts[1]
    assert visit.pending is None, "the picture has gone with the first question"
    then = say(desk, visit, "And?")
    for at, one in enumerate((generator, second)):
        said = Turn(role="assistant", parts=(Text(text=first.texts[at]),))
        assert then.texts[at] == alone(one, user("What?", picture), said, user("And?"))
    assert [len(turns) for turns in visit.turns] == [4, 4]


def test_another_picture_goes_with_the_next_question_and_a_new_conversation_shows_it_again(
    desk_of: Callable[..., Desk], generator: Generator, pictures: list[Path]
) -> None:
    desk, visit, (one, two) = desk_of(generator), Visit(), [pictures[at].read_bytes() for at in (1, 7)]
    visit.picture = one
    say(desk, visit, "What?")
    visit.picture = two
    assert len(say(desk, visit, "And this?").samples[0].turns[-1].media) == 1
    visit.clear()
    assert say(desk, visit, "What?").texts == [alone(generator, user("What?", two))]


@pytest.mark.usefixtures("endless")
def test_words_come_in_pieces(desk_of: Callable[..., Desk], generator: Generator, second: Generator) -> None:
    seen = list(desk_of(generator, second).ask(Visit(), "Tell?", LONG))
    assert len(seen) > 10
    for before, after in pairwise(seen):
        assert all(text.startswith(shorter) for shorter, text in zip(before, after, strict=True))


@pytest.mark.usefixtures("endless")
def test_stopped_answers_stay_as_far_as_they_came(desk_of: Callable[..., Desk], generator: Generator) -> None:
    desk, visit = desk_of(generator), Visit()
    exchange = desk.ask(visit, "Tell?", LONG)
    for texts in exchange:
        if texts[0]:
            exchange.stop()
    desk.keep(visit, exchange)
    assert visit.turns[0][-1].text == exchange.texts[0] != ""
    assert say(desk, visit, "And?").texts[0], "the next question is answered"


@pytest.mark.usefixtures("endless")
def test_what_was_cleared_is_not_kept(desk_of: Callable[..., Desk], generator: Generator) -> None:
    desk, visit = desk_of(generator), Visit()
    exchange = desk.ask(visit, "Tell?", LONG)
    visit.clear()
    assert list(exchange) == []
    desk.keep(visit, exchange)
    assert visit.turns == []


@pytest.mark.parametrize(
    ("question", "how", "says"),
    [
        ("  ", HOW, "there is no question"),
        ("a" * 20_000, HOW, r"A: the prompt has \d+ tokens|A: the messages have 20000 characters"),
        ("What?", {**HOW, "temperature": 3}, "`temperature` is 3: expected a number from 0 to 2"),
        ("What?", {**HOW, "max_tokens": 10_000}, "`max_tokens` is 10000: expected a whole number from 1 to 512"),
    ],
)
def test_one_clear_answer_to_what_cannot_be_asked(
    desk_of: Callable[..., Desk], generator: Generator, second: Generator, question: str, how: Any, says: str
) -> None:
    desk, visit = desk_of(generator, second), Visit()
    with pytest.raises(ApiError, match=says):
        desk.ask(visit, question, how)
    assert (visit.turns, visit.asked) == ([], None)
    assert say(desk, visit, "What?").texts[1]


def test_none_is_asked_what_one_cannot_read(
    desk_of: Callable[..., Desk], generator: Generator, second: Generator, pictures: list[Path]
) -> None:
    desk, visit = desk_of(generator, second), Visit(picture=pictures[0].read_bytes())
    desk.speakers[1].prompts.plan = dataclasses.replace(second.plan, inputs={})
    with pytest.raises(ApiError, match="B: this model takes no pictures"):
        desk.ask(visit, "What?", HOW)
    assert desk.speakers[0].batcher.num_batches == 0


@pytest.mark.usefixtures("endless")
def test_an_answer_that_takes_too_long_is_given_up(desk_of: Callable[..., Desk], generator: Generator) -> None:
    began = time.monotonic()
    with pytest.raises(ApiError, match=r"no complete answer within 0\.2 s"):
        list(desk_of(generator, timeout_s=0.2).ask(Visit(), "Tell?", LONG))
    assert time.monotonic() - began < 5


def test_a_picture_is_only_offered_when_all_runs_take_one(
    desk_of: Callable[..., Desk], generator: Generator, second: Generator
) -> None:
    desk = desk_of(generator, second)
    assert desk.takes_pictures
    desk.speakers[0].plan = dataclasses.replace(generator.plan, inputs={})
    assert not desk.takes_pictures
