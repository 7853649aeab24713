"""A look at the data before any weight is read: what would be supervised, what is too long, what is broken."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from mmexp.contracts import Dataset, Sample
from mmexp.data.dataset import (
    BAD_MEDIA,
    BOX_OUTSIDE,
    CAPS,
    NO_SUPERVISION,
    TOO_LONG,
    check_bad_media,
    check_share,
    describe_bad,
    evenly_spaced,
)
from mmexp.errors import DataError
from mmexp.prompt import BadMediaError, OutsideViewError, Processor, TooLongError, describe
from mmexp.prompt.media import SIZES

_BUCKETS = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_SHOWN = 5


@dataclass
class PreflightReport:
    """What `preflight` found."""

    num_rows: int = 0
    """Rows of the data set."""
    num_tokenised: int = 0
    """Rows that were tokenised, spread evenly."""
    files: dict[str, None] = field(default_factory=dict)
    """Paths of the media files that were looked at, each once."""
    supervised: list[int] = field(default_factory=list)
    """Supervised tokens of each tokenised row."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each tokenised row, slots included."""
    num_cut: int = 0
    """Tokenised rows that lose turns at their end."""
    num_cut_answers: int = 0
    """Tokenised rows with an answer that the template's limit shortens."""
    silent: list[str] = field(default_factory=list)
    """Ids of tokenised rows that supervise nothing."""
    too_long: list[str] = field(default_factory=list)
    """Ids of tokenised rows of which not even the first exchange fits."""
    outside: list[str] = field(default_factory=list)
    """Ids of tokenised rows with a box in what the crop cuts away."""
    bad_media: list[dict[str, str]] = field(default_factory=list)
    """`id`, `dataset`, `file` and `reason` of rows with a medium whose file or header is bad."""
    num_looked: int = 0
    """Rows whose structure and media were looked at."""
    errors: list[DataError] = field(default_factory=list)
    """Rows that cannot be used at all."""

    def cuts(self) -> str:
        """What training would not see of tokenised rows, in words; empty for nothing."""
        losses = {
            f"{self.num_cut} lose turns at their end (processor.max_length_tokens)": self.num_cut,
            f"{self.num_cut_answers} lose part of an answer (template.max_answer_tokens)": self.num_cut_answers,
        }
        told = ", ".join(text for text, count in losses.items() if count)
        return f"of {self.num_tokenised} rows looked at {told}" if told else ""

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
    """Tokenises rows without decoding a medium, and reads the header of every medium.

    Args:
        dataset: What will be trained on.
        processor: How.
        max_rows: Rows to tokenise, spread evenly (about 1,000 a second).
        max_files: Rows whose structure and media headers are looked at, spread evenly (about 20,000 a second).
        on_progress: Called with rows done and rows to do.
    """
    report = PreflightReport(num_rows=len(dataset))
    chosen = set(evenly_spaced(len(dataset), max_rows))
    rows = sorted(chosen | set(evenly_spaced(len(dataset), max_files)))
    for number, index in enumerate(rows, 1):
        try:
            sample = dataset[index]
            _check_sample(sample, report)
            if not _has_bad_media(sample, report) and index in chosen:
                _check_tokens(sample, processor, report)
        except DataError as error:
            report.errors.append(error)
        if on_progress and (number % 256 == 0 or number == len(rows)):
            on_progress(number, len(rows))
    return report


def require_trainable(report: PreflightReport, bad_media_cap: float = CAPS[BAD_MEDIA]) -> None:
    """Refuses data that would waste a run.

    Raises:
        DataError: broken rows, a larger share of rows with bad media than `bad_media_cap`, more than 1 % of rows that
            supervise nothing, or more than 10 % that are too long or have a box outside the view.
    """
    if len(report.errors) == 1:
        raise report.errors[0]
    if report.errors:
        shown = "\n".join(error.render() for error in report.errors[:_SHOWN])
        more = f"\n... and {len(report.errors) - _SHOWN} more" if len(report.errors) > _SHOWN else ""
        raise DataError(f"{len(report.errors)} of {report.num_rows} rows cannot be used\n{shown}{more}", where="data")
    check_bad_media(report.bad_media, len(report.bad_media), report.num_looked, bad_media_cap)
    check_share(NO_SUPERVISION, len(report.silent), report.num_tokenised, tuple(report.silent))
    check_share(TOO_LONG, len(report.too_long), report.num_tokenised, tuple(report.too_long))
    check_share(BOX_OUTSIDE, len(report.outside), report.num_tokenised, tuple(report.outside))


def _check_sample(sample: Sample, report: PreflightReport) -> None:
    if not any(turn.role == "assistant" for turn in sample.turns):
        raise DataError(
            "a conversation without an answer",
            expected="at least one assistant turn (`gpt` in LLaVA JSON)",
            where=describe(sample),
            fix="remove the row, or add the answer",
        )


def _has_bad_media(sample: Sample, report: PreflightReport) -> bool:
    """Reads the header of every medium; the first one that is bad goes into the report."""
    report.num_looked += 1
    for medium in (medium for turn in sample.turns for medium in turn.media):
        if isinstance(medium.source, (str, os.PathLike)):
            report.files[os.fspath(medium.source)] = None
        try:
            if medium.modality in SIZES:
                SIZES[medium.modality](medium.source, describe(sample))
            elif isinstance(medium.source, (str, os.PathLike)) and not os.path.isfile(medium.source):
                missing = BadMediaError(f"the {medium.modality} file does not exist", where=describe(sample))
                missing.file = os.fspath(medium.source)
                raise missing
        except BadMediaError as error:
            report.bad_media.append(describe_bad(sample, error))
            return True
    return False


def _check_tokens(sample: Sample, processor: Processor, report: PreflightReport) -> None:
    report.num_tokenised += 1
    try:
        layout = processor.layout(sample)
    except TooLongError:
        report.too_long.append(sample.id)
        return
    except OutsideViewError:
        report.outside.append(sample.id)
        return
    report.lengths.append(len(layout.encoded.ids))
    report.supervised.append(layout.num_supervised)
    report.num_cut += layout.num_dropped_turns > 0
    report.num_cut_answers += layout.encoded.num_cut_tokens > 0
    if not layout.num_supervised:
        report.silent.append(sample.id)
