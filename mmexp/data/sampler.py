"""Which samples are in which micro-batch: a pure function of seed and position, so that a resumed run is the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache


class RunSampler:
    """The micro-batches of a whole run on one rank, as lists of sample indices.

    The run reads one endless stream: data epoch 0 shuffled, then data epoch 1 shuffled, ... A micro-batch that is not
    filled by the end of an epoch goes on with the next one, so no sample is lost or doubled inside an epoch.
    Micro-batch t takes `world_size * batch_size` samples of the stream, and rank r its r-th slice.

    Args:
        num_samples: Size of the data set.
        batch_size: Samples of one micro-batch on one rank.
        num_micro_batches: Length of the whole run; `len()` of this object, wherever it starts.
        seed: Together with the data epoch the only source of randomness.
        position: Micro-batches already trained; iteration starts behind them.
        rank: This process.
        world_size: All processes.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        num_micro_batches: int,
        seed: int,
        position: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert min(num_samples, batch_size, world_size) > 0
        assert 0 <= rank < world_size
        self.num_samples, self.batch_size, self.num_micro_batches = num_samples, batch_size, num_micro_batches
        self.seed, self.position, self.rank, self.world_size = seed, position, rank, world_size

    def __len__(self) -> int:
        return self.num_micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        for position in range(self.position, self.num_micro_batches):
            yield self.micro_batch(position)

    def micro_batch(self, position: int) -> list[int]:
        """Indices of the micro-batch at `position` on this rank."""
        start = (position * self.world_size + self.rank) * self.batch_size
        return [self.sample_at(place) for place in range(start, start + self.batch_size)]

    def sample_at(self, place: int) -> int:
        """Index of the sample at a place of the endless stream."""
        epoch, offset = divmod(place, self.num_samples)
        return _epoch_order(self.num_samples, self.seed, epoch)[offset]


@lru_cache(maxsize=2)
def _epoch_order(num_samples: int, seed: int, epoch: int) -> list[int]:
    """The order of one data epoch; two are kept because a micro-batch can lie across a border."""
    import torch  # not at the top: the config door reads this room's dataclasses and must stay fast

    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(num_samples, generator=generator).tolist()
