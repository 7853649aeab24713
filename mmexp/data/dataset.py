"""Samples made ready for training, and the named, counted, capped rules by which one may be left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmexp.contracts import Batch, Dataset, Item, Sample
from mmexp.errors import DataError
from mmexp.prompt import BadMediaError, FeatureLookup, OutsideViewError, Processor, TooLongError

TOO_LONG = "too_long"
NO_SUPERVISION = "no_supervision"
BOX_OUTSIDE = "box_outside"
BAD_MEDIA = "bad_media"
CAPS: Mapping[str, float] = {TOO_LONG: 0.1, NO_SUPERVISION: 0.01, BOX_OUTSIDE: 0.1, BAD_MEDIA: 0.001}
"""Per reason the largest share of samples that may be left out."""
_ADVICE = {
    BAD_MEDIA: "restore the files (the run's bad_samples.jsonl lists them), or raise processor.bad_media_cap",
    BOX_OUTSIDE: "processor.image_fit=pad or squash, which show the whole picture",
    TOO_LONG: "raise processor.max_length_tokens, or shorten the data",
    NO_SUPERVISION: "look at these rows: an answer without text supervises nothing",
}
_LISTED = 20
"""Samples with bad media that a message lists."""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Takes the place of a sample that is left out; another sample is never drawn instead."""

    reason: str
    id: str
    dataset: str = ""
    bad: Mapping[str, str] | None = None
    """Of a sample whose medium cannot be read: `id`, `dataset`, `file` and `reason`."""


@dataclass(frozen=True)
class TrainingData:
    """Index to `Item`, or to a record of why that sample is left out. Map-style, stateless, picklable."""

    dataset: Dataset
    processor: Processor
    features: Mapping[str, FeatureLookup] = field(default_factory=dict)
    """Per modality features that were kept, so that their media need no decoding."""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item | Dropped:
        """Raises DataError for a sample that is broken; only the rules of `CAPS` may leave one out."""
        sample = self.dataset[index]
        try:
            item = self.processor.encode(sample, self.features)
        except TooLongError:
            return Dropped(reason=TOO_LONG, id=sample.id, dataset=sample.dataset)
        except OutsideViewError:
            return Dropped(reason=BOX_OUTSIDE, id=sample.id, dataset=sample.dataset)
        except BadMediaError as error:
            bad = describe_bad(sample, error)
            return Dropped(reason=BAD_MEDIA, id=sample.id, dataset=sample.dataset, bad=bad)
        if not item.num_supervised:
            return Dropped(reason=NO_SUPERVISION, id=sample.id, dataset=sample.dataset)
        return item


def describe_bad(sample: Sample, error: BadMediaError) -> dict[str, str]:
    """The line of a sample in bad_samples.jsonl."""
    return {"id": sample.id, "dataset": sample.dataset, "file": error.file, "reason": error.found}


@dataclass
class DropCounts:
    """Counts what was left out of training, and stops the run when it is too much.

    One training process counts the batches that it trained, whichever of its data workers made them; batches that
    were prepared and never trained do not count, and a sample counts again in each epoch. Other processes have counts
    of their own: a resumed run gives all of them those of the first one.
    """

    num_seen: int = 0
    num_dropped_turns: int = 0
    """Turns cut from the ends of over-long samples."""
    num_cut_tokens: int = 0
    """Tokens cut from answers because the template limits them."""
    dropped: dict[str, int] = field(default_factory=dict)
    by_dataset: dict[str, Counter[str]] = field(default_factory=dict)
    """Per dataset, or part of a mixture, how many samples each reason took."""
    min_seen: int = 1000
    """Shares are judged only after so many samples."""
    bad_media_cap: float = CAPS[BAD_MEDIA]
    """Largest share of samples with a medium that nobody can read."""
    num_samples: int = 0
    """Rows of the data that fall to this process; bad media are judged as a share of these until more were seen, so
    that two bad files at the start of a large dataset do not stop a run."""

    def state(self) -> dict[str, Any]:
        """The counts, for a checkpoint."""
        return {
            "num_seen": self.num_seen,
            "num_dropped_turns": self.num_dropped_turns,
            "num_cut_tokens": self.num_cut_tokens,
            "dropped": dict(self.dropped),
            "dropped_by_dataset": {name: dict(counts) for name, counts in self.by_dataset.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from the counts of a checkpoint."""
        self.num_seen, self.num_dropped_turns = state["num_seen"], state["num_dropped_turns"]
        self.num_cut_tokens = state.get("num_cut_tokens", 0)
        self.dropped = dict(state["dropped"])
        self.by_dataset = {name: Counter(counts) for name, counts in state.get("dropped_by_dataset", {}).items()}

    def metrics(self) -> dict[str, int]:
        """What was left out and cut since the run began, by the name of the metric; only what there is."""
        cut = {"data/dropped_turns": self.num_dropped_turns, "data/cut_answer_tokens": self.num_cut_tokens}
        left_out = {f"data/dropped/{reason}": count for reason, count in self.dropped.items()}
        return left_out | {name: count for name, count in cut.items() if count}

    def update(self, batch: Batch) -> None:
        """Counts one batch.

        Raises:
            DataError: a reason took more than its share of the samples seen so far.
        """
        kept = len(batch.ids) if batch.num_supervised else 0
        self.num_seen += kept + sum(map(len, batch.dropped.values()))
        self.num_dropped_turns += batch.num_dropped_turns
        self.num_cut_tokens += batch.num_cut_tokens
        for reason, ids in batch.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + len(ids)
            names = batch.dropped_datasets.get(reason, ("",) * len(ids))
            for name in names:
                self.by_dataset.setdefault(name, Counter())[reason] += 1
            shown = tuple(f"{name}/{id}" if name else id for name, id in zip(names, ids, strict=True))  # noqa: A001  # what it is called in a sample
            if reason == BAD_MEDIA:
                total = max(self.num_seen, self.num_samples)
                check_bad_media(batch.bad_media, self.dropped[reason], total, self.bad_media_cap)
            else:
                check_share(reason, self.dropped[reason], self.num_seen, shown, min_seen=self.min_seen)


def check_bad_media(bad: Sequence[Mapping[str, str]], count: int, total: int, cap: float) -> None:
    """Raises DataError, with a list of `bad`, when `count` of `total` samples is a larger share than `cap`."""
    if count <= cap * total:
        return
    listed = [
        f"{entry['dataset'] or 'data'}, sample {entry['id']!r}, {entry['file'] or 'encoded bytes'}: {entry['reason']}"
        for entry in bad[:_LISTED]
    ]
    more = [f"... and {len(bad) - _LISTED} more"] if len(bad) > _LISTED else []
    raise DataError(
        "\n".join([f"{count} of {total} samples ({count / total:.2%}) have media that cannot be read", *listed, *more]),
        expected=f"at most {cap:.3g} of them (processor.bad_media_cap)",
        where="data",
        fix=_ADVICE[BAD_MEDIA],
    )


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
