"""One thread that answers what is waiting, several requests at a time."""

from __future__ import annotations

import logging
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from mmexp.contracts import Item
from mmexp.llm import Sampling
from mmexp.serve.answers import Answer, Answers
from mmexp.serve.errors import ApiError

if TYPE_CHECKING:
    from mmexp.engine import Generator

log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """A piece of an answer's text."""

    text: str


class Done(NamedTuple):
    """The end of an answer."""

    finish: str
    """`stop` or `length`"""
    num_tokens: int


Event = Piece | Done | ApiError


@dataclass(kw_only=True, eq=False)
class Job:
    """A prompt that waits for its answer."""

    item: Item
    sampling: Sampling
    """With equal ones, jobs are answered together; its `max_new_tokens` counts, its `stop` is the template's."""
    stops: tuple[str, ...]
    """Texts that end this answer besides."""
    deadline: float
    """On the monotonic clock."""
    on_event: Callable[[Event], None]
    """Called by the thread of the batcher with pieces, then with one end or error."""
    is_started: bool = False
    """Whether a batch has taken it."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits any more."""

    @property
    def group(self) -> tuple[object, ...]:
        """Equal for jobs that may be answered together; a sampled answer with a seed must be alone to be repeatable."""
        of = self.sampling
        return (of.temperature, of.top_p, of.repetition_penalty, None if of.seed is None else id(self))

    def has_left(self) -> bool:
        return self.left.is_set() or time.monotonic() > self.deadline


class Batcher:
    """Answers jobs in the order they came, with others of equal settings that wait too.

    Args:
        generator: The model; only the thread of the batcher calls it.
        max_batch: Most jobs at a time.
        exact: As in `ServeConfig`.
    """

    def __init__(self, generator: Generator, max_batch: int, exact: bool) -> None:
        self.generator, self.max_batch = generator, max_batch
        self._rounding = coarsest(generator.model.parameters()) if exact else None
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.num_batches = self.num_answers = self.num_again = 0
        self.thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self.thread.start()

    def put(self, job: Job) -> None:
        """Queues a job."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Answers what is there, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            self._answer(jobs)

    def _take(self) -> list[Job]:
        """The next batch; empty at the end."""
        with self._changed:
            while True:
                self._waiting = deque(job for job in self._waiting if not job.has_left())
                if self._waiting:
                    group = self._waiting[0].group
                    jobs = [job for job in self._waiting if job.group == group][: self.max_batch]
                    for job in jobs:
                        self._waiting.remove(job)
                        job.is_started = True
                    return jobs
                if self._closed:
                    return []
                self._changed.wait()

    def _answer(self, jobs: Sequence[Job], shown: str = "") -> None:
        """Answers a batch; what cannot be answered in it is answered alone, and fails alone."""
        alone = len(jobs) == 1
        greedy = jobs[0].sampling.temperature == 0
        answers = [self._row(job, shown) for job in jobs]
        watch = Answers(answers, self._ending(jobs).stop_ids, self._rounding if greedy and not alone else None)
        self.num_batches += 1
        try:
            self.generator.answer([job.item for job in jobs], self._ending(jobs), watch)
        except Exception as error:  # one request must not end the others, nor the server
            log.error("a batch of %d failed: %s", len(jobs), place_of(error))
            for job, row in zip(jobs, answers, strict=True):
                self._again(job, row, can_be_repeated=not alone and (greedy or not row.text))
            return
        for job, row in zip(jobs, answers, strict=True):
            row.close()
            if row.finish == "again":
                self._again(job, row)
            elif row.finish != "left":
                self.num_answers += 1
                job.on_event(Done(str(row.finish), row.num_tokens))

    def _again(self, job: Job, row: Answer, can_be_repeated: bool = True) -> None:
        """Makes an answer alone; one that had ended before its batch failed too, for that is rare."""
        if not can_be_repeated:
            job.on_event(ApiError(500, "the model failed on this request; the log says where", "internal"))
        elif not job.has_left():
            self.num_again += 1
            self._answer([job], row.text)

    def _row(self, job: Job, shown: str) -> Answer:
        ending = self._ending([job])
        stops = (*((ending.stop,) if ending.stop else ()), *job.stops)
        return Answer(self.generator.plan.hf_tokenizer, lambda text: job.on_event(Piece(text)), stops,
                      job.sampling.max_new_tokens, job.has_left, shown)  # fmt: skip

    def _ending(self, jobs: Sequence[Job]) -> Sampling:
        """The settings of a batch; answers of a sampled one without a seed differ from call to call."""
        of = jobs[0].sampling
        return self.generator.ending(Sampling(
            max_new_tokens=max(job.sampling.max_new_tokens for job in jobs), temperature=of.temperature,
            top_p=of.top_p, repetition_penalty=of.repetition_penalty,
            seed=secrets.randbits(62) if of.seed is None else of.seed,
        ))  # fmt: skip


def coarsest(parameters: Iterable[torch.Tensor]) -> float:
    """The rounding of the coarsest type that weights have; of numbers that are none of weights' types (8 and 4 bit) the
    others decide."""
    return max((torch.finfo(one.dtype).eps for one in parameters if one.is_floating_point()), default=2**-23)


def place_of(error: BaseException) -> str:
    """Kind and place of an error, without its message, which may hold what somebody wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    return type(error).__name__ + (f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else "")
