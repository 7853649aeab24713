"""Asks a model all questions of a benchmark: in a good order, with a bar, and without losing answers when it stops."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmexp.contracts import Sample
from mmexp.errors import ConfigError
from mmexp.evaluation.base import Predict


@dataclass(frozen=True)
class Share:
    """One of several equal parts of an evaluation, for as many processes."""

    index: int
    """From 0."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Of `0/4`, the first of four. Raises ConfigError."""
        index, _, count = text.partition("/")
        if index.isdecimal() and count.isdecimal() and int(index) < int(count):
            return cls(int(index), int(count))
        raise ConfigError(
            f"{text!r}", expected="INDEX/COUNT from 0/COUNT on, such as 0/4, 1/4, 2/4, 3/4", where="share"
        )


class KeptAnswers:
    """Answers on disk while a benchmark runs, each under a hash of who was asked what.

    Args:
        path: The file, a line of JSON for each answer; a line that is cut off is passed over. Each share of an
            evaluation has a file of its own beside it.
        identity: What decides an answer besides its question. Empty keeps nothing.
        share: Which share this process answers.
    """

    def __init__(self, path: Path, identity: str, share: Share | None = None) -> None:
        self.path, self.identity = path, identity
        self._own = path.with_name(f"{path.name}.{share.index}") if share else path
        self._found = dict(self._read()) if identity else {}

    def find(self, way: str, samples: Sequence[Sample]) -> dict[int, str]:
        """The answers that are there, by the index of their sample."""
        keys = {index: self._key(way, sample) for index, sample in enumerate(samples)} if self._found else {}
        return {index: self._found[key] for index, key in keys.items() if key in self._found}

    def add(self, way: str, samples: Sequence[Sample], answers: Sequence[str]) -> None:
        """Appends the answers to some samples."""
        if not self.identity:
            return
        pairs = zip(samples, answers, strict=True)
        lines = [json.dumps({"key": self._key(way, sample), "answer": text}) + "\n" for sample, text in pairs]
        self._own.parent.mkdir(parents=True, exist_ok=True)
        with self._own.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def drop(self) -> None:
        """Removes what is kept, of all shares: the benchmark is done."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.name}*"))

    def _read(self) -> Iterator[tuple[str, str]]:
        lines = (line for file in self._files() for line in file.read_text("utf-8", "replace").splitlines())
        for line in lines:
            try:
                record = json.loads(line)
                yield record["key"], record["answer"]
            except (ValueError, KeyError, TypeError):
                continue

    def _key(self, way: str, sample: Sample) -> str:
        asked = [[turn.role, turn.text] for turn in sample.turns]
        text = json.dumps(
            [self.identity, way, sample.dataset, sample.id, asked, sample.meta.get("options")], default=str
        )
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Asker:
    """How one split of a benchmark is asked."""

    kept: KeptAnswers
    batch_size: int
    """Samples given to the predictor at once."""
    label: str
    console: Console
    """Where the bar is drawn; only a terminal shows one."""
    share: Share | None = None
    """Which batches are asked here; None asks all."""

    def ask(self, predict: Predict, samples: Sequence[Sample], way: str = "") -> list[str]:
        """One answer a sample, in order.

        Args:
            predict: The model.
            samples: Without their answers.
            way: What this asking is called beside others: empty, or `blind`.

        Raises:
            ValueError: the predictor gave too few answers or too many.
        """
        texts = self.fill(predict, samples, way)
        return [texts[index] for index in range(len(samples))]

    def fill(self, predict: Predict, samples: Sequence[Sample], way: str = "") -> dict[int, str]:
        """As `ask`: answers by the index of their sample, of this share and of what was kept."""
        texts = self.kept.find(way, samples)
        order = [index for index in self._own(side_by_side(samples)) if index not in texts]
        began, num_kept = time.monotonic(), len(texts)
        with self._bar() as bar:
            task = bar.add_task(f"{self.label} {way}".strip(), total=len(samples), completed=num_kept, speed="")
            for start in range(0, len(order), self.batch_size):
                chunk = order[start : start + self.batch_size]
                asked = [samples[index] for index in chunk]
                answers = list(predict(asked))
                if len(answers) != len(chunk):
                    raise ValueError(f"predict gave {len(answers)} answers for {len(chunk)} samples ({self.label})")
                texts |= zip(chunk, answers, strict=True)
                self.kept.add(way, asked, answers)
                speed = (len(texts) - num_kept) / max(time.monotonic() - began, 1e-9)
                bar.update(task, completed=len(texts), speed=f"{speed:.1f} samples/s")
        return texts

    def _own(self, order: list[int]) -> list[int]:
        if self.share is None:
            return order
        return [each for at, each in enumerate(order) if at // self.batch_size % self.share.count == self.share.index]

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )


def side_by_side(samples: Sequence[Sample]) -> list[int]:
    """Indices with samples about the same media next to each other, and long texts beside long ones."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    lengths = [sum(len(turn.text) for turn in sample.turns) for sample in samples]
    for index, sample in enumerate(samples):
        media = tuple(medium.identity for turn in sample.turns for medium in turn.media)
        groups.setdefault(media or (index,), []).append(index)
    ordered = sorted(groups.values(), key=lambda group: -max(lengths[index] for index in group))
    return [index for group in ordered for index in group]
