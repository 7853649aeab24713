"""Samples about the same media side by side: the media and the beginning that they have in common are computed once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmexp.contracts import IGNORE, Dataset, Item, LlmSpec
from mmexp.errors import ConfigError
from mmexp.prompt import common_length

if TYPE_CHECKING:
    from numpy import ndarray

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SharedRows:
    """Puts the samples of a block that show the same media into one row."""

    groups: ndarray
    """int64[rows of the dataset], equal for samples about the same media."""
    most: int
    """Samples of a row; what is beyond it makes another row, right behind."""

    def pack(
        self, indices: ndarray, block: int, start: int = 0, kinds: ndarray | None = None
    ) -> tuple[ndarray, ndarray]:
        """The samples of a block as rows, arguments and result as of `Packer.pack`.

        A row stands where the sample of it was drawn that comes first in the dataset: where any sample would do, rows
        of many samples would come early.
        """
        import numpy as np

        groups = self.groups[indices]
        if kinds is not None:
            groups = np.unique(np.stack([kinds, groups]), axis=1, return_inverse=True)[1].reshape(-1)
        members = np.argsort(groups, kind="stable")
        sorted_groups = groups[members]
        firsts = np.flatnonzero(np.diff(sorted_groups, prepend=sorted_groups[0] - 1))
        leaders = np.lexsort((indices, groups))[firsts]
        pieces = np.split(members, firsts[1:])
        rows = [
            pieces[number][at : at + self.most]
            for number in np.argsort(leaders, kind="stable")
            for at in range(0, len(pieces[number]), self.most)
        ]
        return indices[np.concatenate(rows)], np.asarray([len(row) for row in rows], dtype=np.int64)

    @property
    def digest(self) -> str:
        """A hash of what stands with what."""
        return hashlib.sha256(self.groups.tobytes()).hexdigest()[:8]


def require_shareable(spec: LlmSpec, objective: Any) -> None:
    """Raises ConfigError when an LLM cannot share beginnings, or an objective does not know of them."""
    where, fix = "processor.row", "processor.row=flat"
    if not spec.shares_beginnings:
        raise ConfigError(
            f"shared, with an LLM of type {spec.model_type}",
            expected="a decoder-only LLM without a sliding window, in which several texts can go on from one beginning",
            where=where,
            fix=fix,
        )
    if not getattr(objective, "shares_beginnings", False):
        raise ConfigError(f"shared, with {type(objective).__name__}", expected="objective=next_token",
                          where=where, fix=fix)  # fmt: skip


def groups_of(dataset: Dataset) -> ndarray:
    """int64[rows], equal for rows whose media are the same files in the same order. A row without media, or with one
    that is no file (a member of a tar), stands alone. Every row is read once, and no medium.

    Raises:
        DataError: a row is broken.
    """
    import numpy as np

    log.info("looking which of %d rows show the same pictures", len(dataset))
    known: dict[Any, int] = {}
    groups = np.empty(len(dataset), dtype=np.int64)
    for index in range(len(dataset)):
        media = [medium for turn in dataset[index].turns for medium in turn.media]
        are_files = bool(media) and all(isinstance(medium.source, str | Path) for medium in media)
        key = tuple(medium.identity for medium in media) if are_files else index
        groups[index] = known.setdefault(key, len(known))
    return groups


class Piece(NamedTuple):
    """A segment of a row: a sample, the beginning of several, or the rest of one."""

    item: Item
    start: int = 0
    """Position of its first token; above 0 for the rest of a sample."""
    num_followers: int = 0
    """How many of the pieces behind it go on from it."""


def share(items: Sequence[Item]) -> list[Piece]:
    """Neighbours that begin alike, as that beginning and what each has of its own: samples about the same media, or
    several answers to one sample.

    A beginning carries no loss, and ends before the first token of any of them that does.
    """
    pieces: list[Piece] = []
    at = 0
    while at < len(items):
        group = [items[at]]
        while at + len(group) < len(items) and _same_media(group[0], items[at + len(group)]):
            group.append(items[at + len(group)])
        pieces += _shared(group)
        at += len(group)
    return pieces


def _shared(group: Sequence[Item]) -> list[Piece]:
    length = 0
    if len(group) > 1:
        length = common_length([item.input_ids.tolist() for item in group], [item.runs for item in group])
        length = min(length, *(_first_target(item) for item in group))
        length *= all(run.start + run.length <= length for run in group[0].runs)
    if not length:
        return [Piece(item) for item in group]
    first = group[0]
    beginning = replace(first, input_ids=first.input_ids[:length], labels=first.labels[:length])
    rests = [
        Item(
            id=item.id,
            dataset=item.dataset,
            input_ids=item.input_ids[length:],
            labels=item.labels[length:],
            runs=(),
            media={},
        )
        for item in group
    ]
    return [Piece(beginning, 0, len(group)), *(Piece(rest, length) for rest in rests)]


def _first_target(item: Item) -> int:
    targets = (item.labels != IGNORE).nonzero()
    return int(targets[0]) if len(targets) else len(item.labels)


def _same_media(one: Item, other: Item) -> bool:
    """Whether two samples show the LLM the same, picture by picture; without any, whether they are one sample."""
    return (
        (bool(one.media) or (one.dataset, one.id) == (other.dataset, other.id))
        and one.views == other.views
        and one.hits == other.hits
        and all(
            _same(getattr(one, name), getattr(other, name)) for name in ("media", "gather", "blend", "instructions")
        )
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two mappings of names to tensors are equal."""
    return one.keys() == other.keys() and all(
        len(one[name]) == len(other[name])
        and all(
            a is b or (a.shape == b.shape and bool((a == b).all())) for a, b in zip(one[name], other[name], strict=True)
        )
        for name in one
    )
