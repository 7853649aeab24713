"""Every row of a dataset looked at: what is broken, what would be cut, what is there twice, what leaks."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from mmexp.contracts import Dataset, Medium, Sample, Text
from mmexp.errors import DataError
from mmexp.prompt import BadMediaError, Processor, TooLongError, load_image

Severity = Literal["error", "warning"]
KINDS: Mapping[str, tuple[Severity, str]] = {
    "format": ("error", "the row is not as its format says, or its conversation cannot be used"),
    "media": ("error", "a picture is missing or cannot be read"),
    "no_supervision": ("error", "nothing would be learnt from the row: its answers are empty"),
    "too_long": ("error", "not even the first exchange fits into the sequence"),
    "leak": ("error", "the same picture or conversation is also in the data it must be apart from"),
    "cut": ("warning", "turns at the end are cut, because the row is longer than the sequence"),
    "cut_answer": ("warning", "part of an answer is cut, because it is longer than the template allows"),
    "duplicate": ("warning", "the same pictures and words as an earlier row"),
    "same_id": ("warning", "an earlier row has the same id"),
}
"""Per kind of problem how grave it is, and what it means."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with one row."""

    kind: str
    """A key of `KINDS`."""
    id: str
    """The sample's id, or `row N` where it has none."""
    dataset: str = ""
    detail: str
    """What was found, for a person."""
    file: str | None = None
    """The picture at fault, or one of the row to show."""
    text: str = ""
    """The beginning of the conversation."""


@dataclass(kw_only=True)
class Inspection:
    """What `inspect_data` found."""

    num_rows: int = 0
    """Rows that the reader could make samples of, and those it could not."""
    problems: list[Problem] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Tokens of each row, slots included, after cutting."""
    supervised: list[int] = field(default_factory=list)
    """Tokens with loss of each row."""
    num_turns: list[int] = field(default_factory=list)
    num_media: list[int] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Width and height of the pictures in pixels, and how many have them."""
    datasets: Counter[str] = field(default_factory=Counter)
    """Rows of each part of a mixture."""

    @property
    def counts(self) -> dict[str, int]:
        """How many problems there are of each kind, gravest first."""
        found = Counter(problem.kind for problem in self.problems)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    @property
    def num_errors(self) -> int:
        """Problems that are no mere warnings."""
        return sum(KINDS[problem.kind][0] == "error" for problem in self.problems)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What one look at a row gives."""

    sample: Sample
    problems: tuple[Problem, ...] = ()
    length: int | None = None
    supervised: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    text_hash: str = ""
    media_hashes: tuple[str, ...] = ()


def inspect_data(
    dataset: Dataset,
    processor: Processor,
    against: Sequence[Dataset] = (),
    row_errors: Iterable[DataError] = (),
    num_threads: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Reads, decodes and tokenises every row.

    Args:
        dataset: What is looked at.
        processor: As in training; its media transforms are not run.
        against: Datasets that must share no picture and no conversation with it (the other splits).
        row_errors: What the reader could not make samples of.
        num_threads: Pictures are decoded and text is tokenised outside of Python's lock.
        on_progress: Called with rows done and rows to do.
    """
    report = Inspection(num_rows=len(dataset))
    for error in row_errors:
        report.num_rows += 1
        report.problems.append(Problem(kind="format", id=error.where or "?", detail=error.render()))
    foreign = _known(against)
    seen_rows: dict[tuple[str, ...], str] = {}
    seen_ids: set[tuple[str, str]] = set()
    for number, row in enumerate(_rows(dataset, processor, num_threads), 1):
        if isinstance(row, Problem):
            report.problems.append(row)
        else:
            _add(report, row, foreign, seen_rows, seen_ids)
        if on_progress and (number % 64 == 0 or number == len(dataset)):
            on_progress(number, len(dataset))
    return report


def _rows(dataset: Dataset, processor: Processor, num_threads: int) -> Iterator[_Row | Problem]:
    """Every row in order, a few at a time in threads."""
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for start in range(0, len(dataset), 256):
            indices = range(start, min(start + 256, len(dataset)))
            yield from pool.map(lambda index: _look(dataset, index, processor), indices)


def _look(dataset: Dataset, index: int, processor: Processor) -> _Row | Problem:
    try:
        sample = dataset[index]
    except DataError as error:
        return Problem(kind="format", id=f"row {index}", detail=error.render())
    problems: list[Problem] = []
    sizes, hashes = [], []
    for medium in (medium for turn in sample.turns for medium in turn.media):
        try:
            if medium.modality == "image":
                sizes.append(load_image(medium.source).size)
            hashes.append(_content_hash(medium))
        except (DataError, OSError) as error:
            detail = error.found if isinstance(error, DataError) else str(error)
            problems.append(_problem("media", sample, detail, file=_file(medium)))
    length, supervised = None, 0
    try:
        layout = processor.layout(sample)
        length, supervised = len(layout.encoded.ids), layout.num_supervised
        if layout.num_dropped_turns:
            problems.append(_problem("cut", sample, f"{layout.num_dropped_turns} of {len(sample.turns)} turns"))
        if layout.encoded.num_cut_tokens:
            problems.append(_problem("cut_answer", sample, f"{layout.encoded.num_cut_tokens} tokens"))
        if not supervised:
            problems.append(_problem("no_supervision", sample, "0 supervised tokens"))
    except BadMediaError:
        pass  # told above already; with boxes, the length of a row depends on its pictures
    except TooLongError as error:
        problems.append(_problem("too_long", sample, error.found))
    except DataError as error:
        problems.append(_problem("format", sample, error.found))
    return _Row(
        sample=sample,
        problems=tuple(problems),
        length=length,
        supervised=supervised,
        sizes=tuple(sizes),
        text_hash=_text_hash(sample),
        media_hashes=tuple(hashes),
    )


def _add(
    report: Inspection,
    row: _Row,
    foreign: Mapping[str, str],
    seen_rows: dict[tuple[str, ...], str],
    seen_ids: set[tuple[str, str]],
) -> None:
    """What a row gives to the report; the comparisons with earlier rows and other data happen here."""
    sample = row.sample
    report.problems += row.problems
    report.datasets[sample.dataset] += 1
    report.num_turns.append(len(sample.turns))
    report.num_media.append(sum(len(turn.media) for turn in sample.turns))
    report.sizes.update(row.sizes)
    if row.length is not None:
        report.lengths.append(row.length)
        report.supervised.append(row.supervised)
    key = (row.text_hash, *row.media_hashes)
    if key in seen_rows:
        report.problems.append(_problem("duplicate", sample, f"as {seen_rows[key]!r}"))
    seen_rows.setdefault(key, sample.id)
    if (sample.dataset, sample.id) in seen_ids:
        report.problems.append(_problem("same_id", sample, f"the id {sample.id!r} again"))
    seen_ids.add((sample.dataset, sample.id))
    for mark in (*dict.fromkeys(row.media_hashes), *(() if row.media_hashes else (row.text_hash,))):
        if mark in foreign:
            what = "picture" if row.media_hashes else "conversation"
            report.problems.append(_problem("leak", sample, f"the {what} is also in {foreign[mark]}"))


def _known(datasets: Sequence[Dataset]) -> dict[str, str]:
    """Hashes of all pictures, and of conversations without any, to where they are."""
    known: dict[str, str] = {}
    for dataset in datasets:
        for index in range(len(dataset)):
            sample = dataset[index]
            place = f"{sample.dataset}, sample {sample.id!r}"
            media = [medium for turn in sample.turns for medium in turn.media]
            for medium in media:
                try:
                    known.setdefault(_content_hash(medium), place)
                except OSError:  # a missing picture of the other data leaks nothing
                    continue
            if not media:
                known.setdefault(_text_hash(sample), place)
    return known


def _content_hash(medium: Medium) -> str:
    source: Any = medium.source
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    data = source if isinstance(source, (bytes, bytearray, memoryview)) else source.tobytes()
    return hashlib.sha256(data).hexdigest()


def _text_hash(sample: Sample) -> str:
    said = [
        (turn.role, [part.text if isinstance(part, Text) else "<medium>" for part in turn.parts])
        for turn in sample.turns
    ]
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _problem(kind: str, sample: Sample, detail: str, file: str | None = None) -> Problem:
    files = (_file(medium) for turn in sample.turns for medium in turn.media)
    text = " | ".join(f"{turn.role}: {turn.text.strip()}" for turn in sample.turns)
    return Problem(
        kind=kind,
        id=sample.id,
        dataset=sample.dataset,
        detail=detail,
        file=file or next((name for name in files if name), None),
        text=text[:300],
    )


def _file(medium: Medium) -> str | None:
    return str(medium.source) if isinstance(medium.source, (str, os.PathLike)) else None
