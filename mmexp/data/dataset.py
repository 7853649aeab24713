"""Samples made ready for training, and the named, counted, capped rules by which one may be left out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmexp.contracts import Batch, Dataset, Item
from mmexp.errors import DataError
from mmexp.prompt import Processor, TooLongError

TOO_LONG = "too_long"
NO_SUPERVISION = "no_supervision"
CAPS: Mapping[str, float] = {TOO_LONG: 0.1, NO_SUPERVISION: 0.01}
"""Per reason the largest share of samples that may be left out."""
_ADVICE = {
    TOO_LONG: "raise processor.max_length_tokens, or shorten the data",
    NO_SUPERVISION: "look at these rows: an answer without text supervises nothing",
}


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Takes the place of a sample that is left out; another sample is never drawn instead."""

    reason: str
    id: str
    dataset: str = ""


@dataclass(frozen=True)
class TrainingData:
    """Index to `Item`, or to a record of why that sample is left out. Map-style, stateless, picklable."""

    dataset: Dataset
    processor: Processor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item | Dropped:
        """Raises DataError for a sample that is broken; only the rules of `CAPS` may leave one out."""
        sample = self.dataset[index]
        try:
            item = self.processor.encode(sample)
        except TooLongError:
            return Dropped(reason=TOO_LONG, id=sample.id, dataset=sample.dataset)
        if not item.num_supervised:
            return Dropped(reason=NO_SUPERVISION, id=sample.id, dataset=sample.dataset)
        return item


@dataclass
class DropCounts:
    """Counts what was left out of training, and stops the run when it is too much."""

    num_seen: int = 0
    num_dropped_turns: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    min_seen: int = 1000
    """Shares are judged only after so many samples."""

    def update(self, batch: Batch) -> None:
        """Counts one batch.

        Raises:
            DataError: a reason took more than its share of the samples seen so far.
        """
        kept = sum(map(len, batch.segment_lengths)) if batch.num_supervised else 0
        self.num_seen += kept + sum(map(len, batch.dropped.values()))
        self.num_dropped_turns += batch.num_dropped_turns
        for reason, ids in batch.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + len(ids)
            check_share(reason, self.dropped[reason], self.num_seen, ids, min_seen=self.min_seen)


def check_share(reason: str, count: int, total: int, examples: tuple[str, ...], min_seen: int = 1) -> None:
    """Raises DataError when `count` of `total` samples is more than the cap of this reason."""
    cap = CAPS.get(reason, 0.0)
    if total >= min_seen and count > cap * total:
        raise DataError(
            f"{count} of {total} samples ({count / total:.1%}) would be left out of training: {reason}",
            expected=f"at most {cap:.0%}",
            where="data, for example " + ", ".join(repr(example) for example in examples[:5]),
            fix=_ADVICE.get(reason),
        )


def fingerprint(dataset: Dataset) -> str:
    """A hash by which a resumed run knows its data: the dataset's own, else one of size and 64 samples."""
    own = getattr(dataset, "fingerprint", None)
    if isinstance(own, str):
        return own
    digest = hashlib.sha256(str(len(dataset)).encode())
    for index in evenly_spaced(len(dataset), 64):
        sample = dataset[index]
        digest.update(repr((sample.id, [(turn.role, turn.text) for turn in sample.turns])).encode())
    return digest.hexdigest()


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` indices spread over `range(total)`, always the same ones."""
    count = min(total, count)
    return [number * total // count for number in range(count)]
