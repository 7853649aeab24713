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
from mmexp.evaluation.base import Predict


class KeptAnswers:
    """Answers on disk while a benchmark runs, each under a hash of who was asked what.

    Args:
        path: The file, a line of JSON for each answer; a line that is cut off is passed over.
        identity: What decides an answer besides its question. Empty keeps nothing.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self._found = dict(self._read()) if identity and path.is_file() else {}

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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def drop(self) -> None:
        """Removes the file: the benchmark is done."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> Iterator[tuple[str, str]]:
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                yield record["key"], record["answer"]
            except (ValueError, KeyError, TypeError):
                continue

    def _key(self, way: str, sample: Sample) -> str:
        asked = [[turn.role, turn.text] for turn in sample.turns]
        text = json.dumps([self.identity, way, sample.dataset, sample.id, asked])
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

    def ask(self, predict: Predict, samples: Sequence[Sample], way: str = "") -> list[str]:
        """One answer a sample, in order.

        Args:
            predict: The model.
            samples: Without their answers.
            way: What this asking is called beside others: empty, or `blind`.

        Raises:
            ValueError: the predictor gave too few answers or too many.
        """
        texts = self.kept.find(way, samples)
        order = [index for index in side_by_side(samples) if index not in texts]
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
        return [texts[index] for index in range(len(samples))]

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
