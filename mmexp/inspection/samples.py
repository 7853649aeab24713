"""Which samples are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmexp.contracts import Dataset, Medium, Sample, Text, Turn
from mmexp.errors import ConfigError, DataError


def own_sample(picture: str, prompt: str) -> Sample:
    """A question of the user's own about a picture."""
    parts = (Medium(source=str(Path(picture).expanduser().absolute())), Text(text=f"\n{prompt}"))
    return Sample(id="own", turns=(Turn(role="user", parts=parts),))


def rows(benchmarks: Mapping[str, Any], data: Any, split: str | None) -> tuple[str, Dataset]:
    """Where samples come from: the first benchmark that asks questions, else the training data; its name, and its rows.

    Args:
        benchmarks: Of the run, or those that the user chose.
        data: The run's dataset config.
        split: Of the benchmark; None takes its first one.

    Raises:
        ConfigError: the benchmark has no such split, or there is none to have one.
    """
    found = next(((name, each) for name, each in benchmarks.items() if each.needs == "generate"), None)
    if found is None:
        if split is not None:
            raise ConfigError(f"no benchmark, so no split {split!r}", expected="null", where="split",
                              fix="evaluation=<benchmark>")  # fmt: skip
        return "training data", data.build()
    name, benchmark = found
    chosen = next(iter(benchmark.splits)) if split is None else split
    if chosen not in benchmark.splits:
        raise ConfigError(f"no split {chosen!r}", expected=", ".join(benchmark.splits), where="split")
    return f"{name} on {chosen}", benchmark.splits[chosen].build()


def choose(dataset: Dataset, count: int, ids: Sequence[str | int], name: str) -> list[Sample]:
    """The samples with these ids, in their order; without ids `count` of them, evenly spaced.

    Raises:
        DataError: an id is not there, or there are no samples.
    """
    size = len(dataset)
    if not size:
        raise DataError("no samples", where=name)
    if not ids:
        count = min(count, size)
        return [dataset[index * size // count] for index in range(count)]
    wanted, found = [str(each) for each in ids], dict[str, Sample]()
    for index in range(size):
        sample = dataset[index]
        if sample.id in wanted:
            found.setdefault(sample.id, sample)
            if len(found) == len(set(wanted)):
                break
    missing = [each for each in wanted if each not in found]
    if missing:
        raise DataError(f"no sample {', '.join(missing)}", expected=f"ids such as {dataset[0].id}", where=name,
                        fix="n=4 shows some with their ids")  # fmt: skip
    return [found[each] for each in wanted]
