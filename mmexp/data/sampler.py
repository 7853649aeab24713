"""Which samples are in which micro-batch: a pure function of seed and position, so that a resumed run is the same."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any

from mmexp.data.grouping import Grouping
from mmexp.data.order import Draws
from mmexp.data.packing import Packer
from mmexp.data.sharing import SharedRows

if TYPE_CHECKING:
    from numpy import ndarray


@dataclass(frozen=True)
class Block:
    """Rows of one block of the run."""

    samples: ndarray
    """int64[samples], row by row."""
    ends: ndarray | None = None
    """int64[rows], where each row ends in `samples`; None where every row is one sample."""

    def take(self, start: int, stop: int) -> list[int]:
        """The samples of rows `start` to `stop`."""
        if self.ends is not None:
            start = int(self.ends[start - 1]) if start else 0
            stop = int(self.ends[stop - 1]) if stop else 0
        return self.samples[start:stop].tolist()

    def __len__(self) -> int:
        return len(self.samples if self.ends is None else self.ends)


class RunOrder:
    """The rows of a run, one behind the other without end. A row is one sample, or several that are packed.

    The run reads data epoch 0 (or round 0 of a mixture), then 1, ... A micro-batch that is not filled by the end of one
    goes on with the next, so no sample is lost or doubled inside an epoch.

    Args:
        draws: Samples of each block.
        packer: Puts several samples into a row.
        grouping: Rearranges the rows of a block.
        kinds: int64[rows of the dataset]: what must not share a group, nor a packed row. None for one kind.
        lengths: int64[rows of the dataset], for a grouping by length; not together with a packer.
        identity: What must be equal for a place to mean the same samples, beyond data and seed; for checkpoints.
    """

    def __init__(
        self,
        draws: Draws,
        *,
        packer: Packer | SharedRows | None = None,
        grouping: Grouping | None = None,
        kinds: ndarray | None = None,
        lengths: ndarray | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        assert packer is None or lengths is None
        self.draws, self.packer, self.grouping, self.kinds, self.lengths = draws, packer, grouping, kinds, lengths
        self.identity = dict(identity or {})
        self._starts = [0]
        """Where packed blocks start, as far as they were needed."""
        self._blocks: dict[int, Block] = {}

    def num_rows(self, epochs: float) -> int:
        """Rows of so many passes over the data."""
        whole, rest = divmod(Fraction(str(epochs)), 1)
        start = self.start(int(whole))
        return start + (ceil(rest * (self.start(int(whole) + 1) - start)) if rest else 0)

    def take(self, start: int, stop: int) -> list[int]:
        """Samples of the rows at places `start` to `stop`."""
        found: list[int] = []
        number = self._block_at(start)
        while start < stop:
            first, block = self.start(number), self.block(number)
            upto = min(stop, first + len(block))
            found += block.take(start - first, upto - first)
            start, number = max(start, upto), number + 1
        return found

    def start(self, number: int) -> int:
        """Rows in all blocks before this one."""
        if self.packer is None:
            return self.draws.start(number)
        while len(self._starts) <= number:
            last = len(self._starts) - 1
            self._starts.append(self._starts[last] + len(self.block(last)))
        return self._starts[number]

    def block(self, number: int) -> Block:
        """The rows of a block; two are kept, because a micro-batch can lie across a border."""
        if number not in self._blocks:
            self._blocks = {key: block for key, block in self._blocks.items() if key == number - 1}
            self._blocks[number] = self._make(number)
        return self._blocks[number]

    def _block_at(self, place: int) -> int:
        if self.packer is None:
            number = place // self.draws.num_samples
            while self.start(number) > place:
                number -= 1
            while self.start(number + 1) <= place:
                number += 1
            return number
        while self._starts[-1] <= place:
            self.start(len(self._starts))
        return bisect_right(self._starts, place) - 1

    def _make(self, number: int) -> Block:
        import numpy as np

        samples = self.draws.block(number)
        counts = None
        if self.packer is not None:
            kinds = None if self.kinds is None else self.kinds[samples]
            samples, counts = self.packer.pack(samples, number, self.start(number), kinds)
        if self.grouping is None:
            return Block(samples, None if counts is None else np.cumsum(counts))
        starts = np.arange(len(samples)) if counts is None else np.cumsum(counts) - counts
        firsts = samples[starts]
        kinds = np.zeros(len(firsts), dtype=np.int64) if self.kinds is None else self.kinds[firsts]
        lengths = None if self.lengths is None else self.lengths[firsts]
        order = self.grouping.arrange(kinds, lengths, self.start(number), number)
        if counts is None:
            return Block(samples[order])
        return Block(*_reordered(samples, starts, counts, order))


def _reordered(samples: ndarray, starts: ndarray, counts: ndarray, order: ndarray) -> tuple[ndarray, ndarray]:
    """Samples with their rows in another order, and where the rows end."""
    import numpy as np

    ends = np.cumsum(counts[order])
    within = np.arange(len(samples)) - np.repeat(ends - counts[order], counts[order])
    return samples[np.repeat(starts[order], counts[order]) + within], ends


class RunSampler:
    """The micro-batches of a whole run on one rank, as lists of sample indices.

    Micro-batch t takes `world_size * batch_size` rows of the run, and rank r its r-th slice.

    Args:
        order: Rows of the run.
        batch_size: Rows of one micro-batch on one rank.
        num_micro_batches: Length of the whole run; `len()` of this object, wherever it starts.
        position: Micro-batches already trained; iteration starts behind them.
        rank: This process.
        world_size: All processes.
    """

    def __init__(
        self,
        *,
        order: RunOrder,
        batch_size: int,
        num_micro_batches: int,
        position: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert min(batch_size, world_size) > 0
        assert 0 <= rank < world_size
        self.order, self.batch_size, self.num_micro_batches = order, batch_size, num_micro_batches
        self.position, self.rank, self.world_size = position, rank, world_size

    def __len__(self) -> int:
        return self.num_micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        for position in range(self.position, self.num_micro_batches):
            yield self.micro_batch(position)

    def micro_batch(self, position: int) -> list[int]:
        """Indices of the micro-batch at `position` on this rank."""
        start = (position * self.world_size + self.rank) * self.batch_size
        return self.order.take(start, start + self.batch_size)
