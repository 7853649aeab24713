"""Pictures with questions that a run was evaluated on, for those who want to pick one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.contracts import Medium, Region, Sample
from mmexp.errors import MmexpError
from mmexp.inspection import choose
from mmexp.serve.errors import ApiError

if TYPE_CHECKING:
    from mmexp.evaluation import BenchmarkConfig
    from mmexp.serve.prompts import PromptMaker

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture and what is asked about it."""

    picture: bytes
    """Encoded."""
    question: str


def load_examples(benchmarks: Mapping[str, BenchmarkConfig], count: int, prompts: PromptMaker) -> list[Example]:
    """At most `count`, evenly from the benchmarks that ask questions. One whose data is not here has none, and the log
    says so.

    Args:
        benchmarks: Of the run.
        count: Most examples; 0 looks at nothing.
        prompts: Checks the pictures.
    """
    asking = {name: each for name, each in benchmarks.items() if each.needs == "generate"}
    found: list[list[Example]] = []
    for name, benchmark in asking.items() if count else ():
        try:
            found.append(list(_of_benchmark(name, benchmark, -(-count // len(asking)), prompts)))
        except (MmexpError, ApiError, OSError) as error:
            log.warning("no examples from %s: %s", name, error)
    return [example for group in found for example in group][:count]


def _of_benchmark(name: str, benchmark: Any, count: int, prompts: PromptMaker) -> Iterator[Example]:
    """Of its first split."""
    split, data = next(iter(benchmark.splits.items()))
    for sample in choose(data.build(), count, (), f"{name} on {split}"):
        example = _example(sample)
        if example is not None:
            prompts.check_picture(example.picture)
            yield example


def _example(sample: Sample) -> Example | None:
    """The first question of a sample; None unless it is words about one picture that is a file."""
    turn = next((turn for turn in sample.turns if turn.role == "user"), None)
    if turn is None or len(turn.media) != 1 or any(isinstance(part, Region) for part in turn.parts):
        return None
    question, picture = turn.text.strip(), _encoded(turn.media[0])
    return Example(picture=picture, question=question) if question and picture else None


def _encoded(medium: Medium) -> bytes | None:
    source = medium.source
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    return bytes(source) if isinstance(source, (bytes, bytearray, memoryview)) else None
