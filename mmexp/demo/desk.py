"""Runs that answer the same questions at the same time, and the conversations that visitors have with them."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.engine.conversation import question_turn
from mmexp.serve.batcher import Batcher, Done, Event, Job, Piece
from mmexp.serve.errors import ApiError
from mmexp.serve.prompts import PromptMaker
from mmexp.serve.request import ChatRequest, read_sampling

if TYPE_CHECKING:
    from mmexp.engine import Generator
    from mmexp.serve import ServeConfig

_LOOK_S = 0.2
"""How often a wait for words looks whether somebody stopped it."""


class Speaker:
    """One run that answers.

    Args:
        name: What the page calls it.
        generator: Its model.
        limits: Of pictures, prompts and answers.
    """

    def __init__(self, name: str, generator: Generator, limits: ServeConfig) -> None:
        self.name, self.plan = name, generator.plan
        self.prompts = PromptMaker(generator.plan, limits)
        self.batcher = Batcher(generator, limits.max_batch, limits.exact)

    @property
    def takes_pictures(self) -> bool:
        """Whether it has an encoder for them."""
        return "image" in self.plan.inputs


def media_of(sample: Sample) -> list[Medium]:
    """Every picture of a conversation, in reading order."""
    return [medium for turn in sample.turns for medium in turn.media]


@dataclass(eq=False)
class Visit:
    """One visitor's conversation: the same questions, and what each run said."""

    turns: list[list[Turn]] = field(default_factory=list)
    """Per run what was said, empty before the first answer."""
    picture: bytes | None = None
    """What lies there, encoded; goes with the next question unless it was the last that went with one."""
    chats: list[list[dict[str, Any]]] = field(default_factory=list)
    """Per run what the page shows of it."""
    seen: bytes | None = None
    """The last picture that went with a question."""
    asked: Exchange | None = None
    """What is being answered."""

    @property
    def pending(self) -> bytes | None:
        """The picture of the next question."""
        return None if self.picture is self.seen else self.picture

    def clear(self) -> None:
        """Forgets what was said, and stops what is being answered; the picture stays for the next conversation."""
        if self.asked is not None:
            self.asked.stop()
        self.turns, self.seen, self.asked = [], None, None


class Exchange:
    """One question while every run answers it. Iterating gives what they have said so far, more each time.

    Args:
        desk: Who answers.
        samples: The conversation as each of them had it, with the question at its end.
        request: How it is to be answered.

    Raises:
        ApiError: one of them cannot read it; then none is asked.
    """

    def __init__(self, desk: Desk, samples: Sequence[Sample], request: ChatRequest) -> None:
        self.samples, self._desk = tuple(samples), desk
        self.texts = [""] * len(samples)
        self._events: queue.Queue[tuple[int, Event]] = queue.Queue()
        self._deadline = time.monotonic() + desk.limits.timeout_s
        self.is_stopped = False
        self._jobs = [self._job(index, replace(request, sample=sample)) for index, sample in enumerate(samples)]
        for speaker, job in zip(desk.speakers, self._jobs, strict=True):
            speaker.batcher.put(job)

    def _job(self, index: int, request: ChatRequest) -> Job:
        speaker = self._desk.speakers[index]
        try:
            item, max_tokens = speaker.prompts.make(request)
        except ApiError as error:
            raise self._named(index, error) from None
        return Job(
            item=item,
            sampling=request.sampling(max_tokens),
            stops=request.stops,
            deadline=self._deadline,
            on_event=lambda event: self._events.put((index, event)),
        )

    def _named(self, index: int, error: ApiError) -> ApiError:
        """The error with the name of its run, where there are several."""
        if len(self._desk.speakers) == 1:
            return error
        found = f"{self._desk.speakers[index].name}: {error.message}"
        return ApiError(error.status, found, error.code, error.param)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """Raises ApiError when an answer fails or does not end in time."""
        waiting = set(range(len(self._jobs)))
        try:
            while waiting and not self.is_stopped:
                for index, event in self._arrived():
                    if isinstance(event, ApiError):
                        raise self._named(index, event)
                    if isinstance(event, Done):
                        waiting.discard(index)
                    elif isinstance(event, Piece):
                        self.texts[index] += event.text
                yield tuple(self.texts)
        finally:
            self.stop()

    def _arrived(self) -> list[tuple[int, Event]]:
        """What came since the last look; waits for a while when that is nothing."""
        if time.monotonic() > self._deadline:
            limit = f"{self._desk.limits.timeout_s:g} s"
            raise ApiError(504, f"no complete answer within {limit}: ask for fewer tokens, or later", "timeout")
        found: list[tuple[int, Event]] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._events.get(timeout=_LOOK_S))
            while True:
                found.append(self._events.get_nowait())
        return found

    def stop(self) -> None:
        """Ends the answers where they are."""
        self.is_stopped = True
        for job in self._jobs:
            job.left.set()
        self._desk.forget(self)


class Desk:
    """The runs behind a page.

    Args:
        speakers: One, or two that are asked the same.
        limits: Of pictures, prompts and answers.
    """

    def __init__(self, speakers: Sequence[Speaker], limits: ServeConfig) -> None:
        self.speakers, self.limits = tuple(speakers), limits
        self._running: set[Exchange] = set()
        self._lock = threading.Lock()

    @property
    def takes_pictures(self) -> bool:
        """Whether all of them do; a picture that one cannot see would be no common input."""
        return all(speaker.takes_pictures for speaker in self.speakers)

    def ask(self, visit: Visit, question: str, settings: dict[str, Any]) -> Exchange:
        """Hands a question to every run.

        Args:
            visit: The conversation so far; it is changed by `keep` alone.
            question: At least one character that is no space.
            settings: temperature, top_p, repetition_penalty and max_tokens.

        Raises:
            ApiError: there is no question, or it, a picture or a setting breaks a limit.
        """
        if not question.strip():
            raise ApiError(400, "there is no question: write one", "missing")
        media = () if visit.pending is None else (Medium(source=visit.pending),)
        turn = question_turn(media, question.strip())
        before = visit.turns or [[] for _ in self.speakers]
        samples = [Sample(id="prompt", turns=(*turns, turn)) for turns in before]
        request = ChatRequest(sample=samples[0], **read_sampling(settings, self.limits), stops=(), stream=True,
                              include_usage=False)  # fmt: skip
        visit.asked = exchange = Exchange(self, samples, request)
        with self._lock:
            self._running.add(exchange)
        return exchange

    def keep(self, visit: Visit, exchange: Exchange) -> None:
        """Makes what was said part of the conversation, unless it was cleared meanwhile."""
        if visit.asked is exchange:
            said = [Turn(role="assistant", parts=(Text(text=text),)) for text in exchange.texts]
            visit.turns = [[*sample.turns, turn] for sample, turn in zip(exchange.samples, said, strict=True)]
            visit.seen = next((medium.source for medium in media_of(exchange.samples[0])[-1:]), None)
            visit.asked = None

    def forget(self, exchange: Exchange) -> None:
        """An exchange is over."""
        with self._lock:
            self._running.discard(exchange)

    def close(self) -> None:
        """Ends every answer, and the threads that make them."""
        with self._lock:
            running = list(self._running)
        for exchange in running:
            exchange.stop()
        for speaker in self.speakers:
            speaker.batcher.close()
