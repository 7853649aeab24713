"""Several samples in one row: which ones, decided on the CPU from token lengths that are known beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmexp.data.shuffle import permutation

if TYPE_CHECKING:
    from numpy import ndarray

PACKING_WINDOW = 4096
"""Samples that are packed together; larger fills rows better and moves samples further from their random place."""


@dataclass(frozen=True, kw_only=True)
class Packer:
    """Packs samples into rows of limited length, window by window.

    Rows of a window that are nearly equally full share a micro-batch, since all rows of one are as long as its longest;
    these groups of rows are shuffled. Rows that fill no group go to the end of the window, the emptiest ones.
    """

    lengths: ndarray
    """int32[rows of the dataset], tokens of each sample; 0 for one that a counted rule will leave out."""
    capacity: int
    """Tokens of a row."""
    group_size: int = 1
    """Rows of one micro-batch over all ranks."""
    window: int = PACKING_WINDOW
    seed: int = 0

    def pack(
        self, indices: ndarray, block: int, start: int = 0, kinds: ndarray | None = None
    ) -> tuple[ndarray, ndarray]:
        """The samples of a block as rows.

        Args:
            indices: int64[samples] in the order they are drawn.
            block: For the shuffle.
            start: Place of the block's first row in the run, by which rows and micro-batches are aligned.
            kinds: int64[samples]; samples of different kinds do not share a row. None for one kind.

        Returns:
            int64[samples], row by row, and int64[rows], samples of each row.
        """
        import numpy as np

        groups = [indices] if kinds is None else [indices[kinds == kind] for kind in np.unique(kinds)]
        rows: list[list[int]] = []
        for number, group in enumerate(groups):
            place = start if kinds is None else 0  # rows of several kinds are grouped anew
            for at in range(0, len(group), self.window):
                chosen = group[at : at + self.window]
                bins = best_fit(self.lengths[chosen].tolist(), self.capacity)
                fills = np.asarray([self.lengths[chosen[row]].sum() for row in bins])
                for row in self._arrange(fills, place, block, number, at):
                    rows.append(chosen[bins[row]].tolist())
                place += len(bins)
        flat = [index for row in rows for index in row]
        return np.asarray(flat, dtype=np.int64), np.asarray([len(row) for row in rows], dtype=np.int64)

    def _arrange(self, fills: ndarray, place: int, *words: int) -> ndarray:
        """The order of the rows of a window whose first row stands at `place`."""
        import numpy as np

        rising = np.argsort(fills, kind="stable")
        lead = min(-place % self.group_size, len(rising))
        rest = rising[lead:]
        left = len(rest) % self.group_size
        groups = rest[left:].reshape(-1, self.group_size)
        turns = permutation(len(groups), self.seed, "rows", *words)
        return np.concatenate([rising[:lead], groups[turns].reshape(-1), rest[:left]])


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best fit, longest first: each sample goes to the row that it fills best; a new row where none has room.

    Args:
        lengths: Tokens of each sample, none above `capacity`.
        capacity: Tokens of a row.

    Returns:
        Rows of places in `lengths`, rising inside a row, which is the order they were drawn in.

    Source: best-fit decreasing, D. S. Johnson 1973; never more than 11/9 of the fewest possible rows, plus 4.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where a row with room r exists, so that the best one is found in one step
    for place in order:
        length = lengths[place]
        assert length <= capacity, "the processor cuts what is longer"
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            rooms ^= (1 << room) if not by_room[room] else 0
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(place)
        by_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return [sorted(row) for row in rows]


def next_fit(lengths: list[int], capacity: int) -> list[int]:
    """How many samples each row takes when they come in this order and none may be put off.

    Taking the samples of packed rows one row behind the other, this never needs more rows than there were.
    """
    counts: list[int] = []
    used = capacity + 1
    for length in lengths:
        if used + length > capacity:
            counts.append(0)
            used = 0
        counts[-1] += 1
        used += length
    return counts
