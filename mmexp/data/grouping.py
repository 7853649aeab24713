"""Rows of a block put into groups that belong together: of one part, of one modality, of like length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmexp.data.shuffle import permutation

if TYPE_CHECKING:
    from numpy import ndarray


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Cuts each kind of rows into groups, shuffles the full groups of all kinds, and puts what is left at the end.

    With lengths this is LLaVA's mega-batch: the rows of a group are sorted by length and dealt into chunks of equal
    number, each row to the chunk that is shortest so far; a chunk is one micro-batch of one rank.

    Source: haotian-liu/LLaVA @ c121f04 llava/train/llava_trainer.py. There the last group of each kind goes to the
    end even when it is full; here only what does not fill one does.
    """

    size: int
    """Rows of a group: of a micro-batch over all ranks, or of an optimizer step for groups of like length."""
    num_chunks: int = 1
    """Micro-batches of a group, where rows have lengths."""
    seed: int = 0

    def arrange(self, kinds: ndarray, lengths: ndarray | None, start: int, block: int) -> ndarray:
        """The order of the rows of a block.

        Args:
            kinds: int64[rows]; rows of different kinds do not share a full group.
            lengths: int64[rows], or None to keep the order inside a group.
            start: Place of the block in the run. Where it lies inside a group of the block before, as many rows fill
                that group first, so that groups and micro-batches stay aligned.
            block: For the shuffle.

        Returns:
            int64[rows], a permutation.
        """
        import numpy as np

        lead = min(-start % self.size, len(kinds))
        names = np.unique(kinds[lead:])
        full, rests = [], []
        for kind in names:
            members = lead + np.flatnonzero(kinds[lead:] == kind)
            groups = [members[at : at + self.size] for at in range(0, len(members), self.size)]
            if lengths is not None:
                groups = [deal(group, lengths[group], self.num_chunks) for group in groups]
            rests += [groups.pop()] if len(groups[-1]) < self.size else []
            full += groups
        if len(names) > 1:
            full = [full[at] for at in permutation(len(full), self.seed, "groups", block)]
            rests = [np.sort(np.concatenate(rests))] if rests else []
        return np.concatenate([np.arange(lead), *full, *rests]).astype(np.int64)


def deal(rows: ndarray, lengths: ndarray, num_chunks: int) -> ndarray:
    """The rows of one group as chunks of equal number and nearly equal length, one chunk behind the other.

    Args:
        rows: int64[rows].
        lengths: Of each row.
        num_chunks: Chunks; where they do not divide the rows, every `num_chunks`-th row goes to the same one.
    """
    import numpy as np

    by_length = np.argsort(-lengths, kind="stable")
    if len(rows) % num_chunks:
        return np.concatenate([rows[by_length[chunk::num_chunks]] for chunk in range(num_chunks)])
    room, chunks = len(rows) // num_chunks, [[] for _ in range(num_chunks)]
    totals: list[float] = [0.0] * num_chunks
    for place in by_length.tolist():
        shortest = totals.index(min(totals))
        chunks[shortest].append(place)
        full = len(chunks[shortest]) == room
        totals[shortest] = float("inf") if full else totals[shortest] + float(lengths[place])
    return rows[np.asarray(chunks, dtype=np.int64).reshape(-1)]
