"""A look at the data before any weight is read: what would be supervised, what is too long, what is broken."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from mmexp.contracts import Dataset, Sample
from mmexp.data.dataset import NO_SUPERVISION, TOO_LONG, check_share, evenly_spaced
from mmexp.errors import DataError
from mmexp.prompt import Processor, TooLongError, describe

_BUCKETS = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_SHOWN = 5


@dataclass
class PreflightReport:
    """What `preflight` found."""

    num_rows: int = 0
    """Rows of the data set."""
    num_tokenised: int = 0
    """Rows that were tokenised, spread evenly."""
    num_files: int = 0
    """Media files whose existence was checked."""
    supervised: list[int] = field(default_factory=list)
    """Supervised tokens of each tokenised row."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each tokenised row, slots included."""
    num_cut: int = 0
    """Tokenised rows that lose turns at their end."""
    silent: list[str] = field(default_factory=list)
    """Ids of tokenised rows that supervise nothing."""
    too_long: list[str] = field(default_factory=list)
    """Ids of tokenised rows of which not even the first exchange fits."""
    errors: list[DataError] = field(default_factory=list)

    def histogram(self) -> dict[str, int]:
        """How many rows have how many supervised tokens, by ranges such as `9-16`."""
        names = ["0", *(f"{low + 1}-{high}" for low, high in pairwise(_BUCKETS))]
        names.append(f">{_BUCKETS[-1]}")
        counts = dict.fromkeys(names, 0)
        for number in self.supervised:
            counts[names[sum(number > edge for edge in _BUCKETS)]] += 1
        return {name: count for name, count in counts.items() if count}


def preflight(
    dataset: Dataset,
    processor: Processor,
    max_rows: int = 1000,
    max_files: int = 100_000,
    on_progress: Callable[[int, int], None] | None = None,
) -> PreflightReport:
    """Tokenises rows without opening a medium, and looks whether the media files exist.

    Args:
        dataset: What will be trained on.
        processor: How.
        max_rows: Rows to tokenise, spread evenly (about 1,000 a second).
        max_files: Rows whose structure and files are looked at, spread evenly (about 30,000 a second).
        on_progress: Called with rows done and rows to do.
    """
    report = PreflightReport(num_rows=len(dataset))
    chosen = set(evenly_spaced(len(dataset), max_rows))
    rows = sorted(chosen | set(evenly_spaced(len(dataset), max_files)))
    for number, index in enumerate(rows, 1):
        try:
            sample = dataset[index]
            _check_sample(sample, report)
            if index in chosen:
                _check_tokens(sample, processor, report)
        except DataError as error:
            report.errors.append(error)
        if on_progress and (number % 256 == 0 or number == len(rows)):
            on_progress(number, len(rows))
    return report


def require_trainable(report: PreflightReport) -> None:
    """Refuses data that would waste a run.

    Raises:
        DataError: broken rows, missing files, more than 1 % of rows that supervise nothing, or more than 10 % too long.
    """
    if len(report.errors) == 1:
        raise report.errors[0]
    if report.errors:
        shown = "\n".join(error.render() for error in report.errors[:_SHOWN])
        more = f"\n... and {len(report.errors) - _SHOWN} more" if len(report.errors) > _SHOWN else ""
        raise DataError(f"{len(report.errors)} of {report.num_rows} rows cannot be used\n{shown}{more}", where="data")
    check_share(NO_SUPERVISION, len(report.silent), report.num_tokenised, tuple(report.silent))
    check_share(TOO_LONG, len(report.too_long), report.num_tokenised, tuple(report.too_long))


def _check_sample(sample: Sample, report: PreflightReport) -> None:
    if not any(turn.role == "assistant" for turn in sample.turns):
        raise DataError(
            "a conversation without an answer",
            expected="at least one assistant turn (`gpt` in LLaVA JSON)",
            where=describe(sample),
            fix="remove the row, or add the answer",
        )
    for medium in (medium for turn in sample.turns for medium in turn.media):
        if isinstance(medium.source, (str, os.PathLike)):
            report.num_files += 1
            if not os.path.isfile(medium.source):
                raise DataError(
                    f"the {medium.modality} file does not exist",
                    expected="an existing file",
                    where=f"{describe(sample)}, file {medium.source}",
                    fix="check data.image_root, or restore the file",
                )


def _check_tokens(sample: Sample, processor: Processor, report: PreflightReport) -> None:
    report.num_tokenised += 1
    try:
        layout = processor.layout(sample)
    except TooLongError:
        report.too_long.append(sample.id)
        return
    report.lengths.append(len(layout.encoded.ids))
    report.supervised.append(layout.num_supervised)
    report.num_cut += layout.num_dropped_turns > 0
    if not layout.num_supervised:
        report.silent.append(sample.id)
