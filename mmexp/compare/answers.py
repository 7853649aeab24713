"""The same samples side by side, as data that the page's script draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmexp.compare.comparison import Comparison
from mmexp.compare.record import Line, Record, target_box
from mmexp.compare.shared import SampleKey, Shared
from mmexp.page import data_uri, find_image, load_thumbnail

_PICTURE_PX = 192


class _Table:
    """Texts or pictures, each once; others name them by number."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, entry: str) -> int:
        """Its number."""
        if entry not in self._places:
            self._places[entry] = len(self.entries)
            self.entries.append(entry)
        return self._places[entry]


class _Pictures:
    """Thumbnails, each file read and embedded once."""

    def __init__(self) -> None:
        self.table = _Table()
        self._by_file: dict[Path, int | None] = {}

    def place(self, name: Any, folder: Path | None) -> int | None:
        """Number of the picture; None when there is none or it cannot be read."""
        file = find_image(name, folder or Path.cwd())
        if file is None:
            return None
        file = file.resolve()
        if file not in self._by_file:
            image = load_thumbnail(file, _PICTURE_PX)
            self._by_file[file] = None if image is None else self.table.place(data_uri(image))
        return self._by_file[file]


def answers(comparison: Comparison, letters: Sequence[str], max_samples: int) -> dict[str, Any]:
    """Benchmarks with their samples, and what every run answered; texts and pictures are named by number.

    Args:
        comparison: The runs.
        letters: Of its groups.
        max_samples: Of one benchmark; more are thinned out evenly.
    """
    texts, pictures = _Table(), _Pictures()
    runs = [(at, record) for at, group in enumerate(comparison.groups) for record in group.records]
    benchmarks = [_benchmark(shared, [record for _, record in runs], texts, pictures, max_samples)
                  for shared in comparison.samples.values()]  # fmt: skip
    return {
        "groups": [{"letter": letter, "label": g.label} for letter, g in zip(letters, comparison.groups, strict=True)],
        "runs": [{"group": at, "name": record.name, "seed": record.seed} for at, record in runs],
        "benchmarks": benchmarks,
        "texts": texts.entries,
        "pictures": pictures.table.entries,
    }


def is_graded(shared: Shared) -> bool:
    """Whether scores are a matter of degree, not right or wrong."""
    return any(line.score not in (0, 1, None) for lines in shared.lines.values() for line in lines)


def _benchmark(
    shared: Shared, records: Sequence[Record], texts: _Table, pictures: _Pictures, max_samples: int
) -> dict[str, Any]:
    size = len(shared.keys)
    chosen = range(size) if size <= max_samples else [at * size // max_samples for at in range(max_samples)]
    first = next(record for record in records if id(record) in shared.lines)
    rows = first.predictions[shared.name]
    return {
        "name": shared.name,
        "metric": shared.metric.rsplit("/", 1)[-1],
        "graded": is_graded(shared),
        "total": size,
        "samples": [_sample(shared.keys[at], rows[shared.keys[at]], first.folder, texts, pictures) for at in chosen],
        "answers": [_of_run(shared.lines.get(id(record)), chosen, texts) for record in records],
    }


def _sample(
    key: SampleKey, row: Mapping[str, Any], folder: Path | None, texts: _Table, pictures: _Pictures
) -> dict[str, Any]:
    return {
        "id": key[0],
        "prompt": texts.place(str(row.get("prompt") or "")),
        "target": texts.place(str(row.get("target") or "")),
        "type": str(row.get("type") or ""),
        "picture": pictures.place(row.get("image"), folder),
        "box": target_box(row),
    }


def _of_run(lines: Sequence[Line] | None, chosen: Sequence[int], texts: _Table) -> dict[str, Any] | None:
    """Answers and scores of one run; None where it was not asked."""
    if lines is None:
        return None
    own = [lines[at] for at in chosen]
    found: dict[str, Any] = {
        "texts": [texts.place(line.prediction) for line in own],
        "scores": [None if line.score is None else round(line.score, 3) for line in own],
    }
    if any(line.box for line in own):
        found["boxes"] = [line.box for line in own]
    return found
