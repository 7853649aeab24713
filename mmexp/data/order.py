"""Which samples a run reads, and in which order: pure functions of seed and block, so that a resumed run is the same.

A run reads one endless stream, cut into blocks. A block of one dataset is a data epoch; a block of a mixture is a round
in which every part goes on in its own endless stream. Nothing here keeps a position: any block can be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Protocol

from mmexp.contracts import Dataset, Sharded
from mmexp.data.mixture import Mixture
from mmexp.data.shuffle import noise, permutation, seed_of

if TYPE_CHECKING:
    from numpy import ndarray

SHUFFLE_WINDOW = 8192
"""Samples; how far the shuffle of data in shards moves one from where reading in order would meet it."""


class Draws(Protocol):
    """Blocks of sample indices."""

    num_samples: int
    """Samples of one data epoch, on average."""

    def start(self, block: int) -> int:
        """Samples in all blocks before this one."""
        ...

    def block(self, block: int) -> ndarray:
        """int64[samples of this block], dataset indices."""
        ...


class _Last:
    """Keeps the block that was made last: short rounds of a mixture ask for the same long block many times in a row.

    Args:
        make: Block number to int64[samples].
    """

    def __init__(self, make: Callable[[int], ndarray]) -> None:
        self._make = make
        self._kept: tuple[int, ndarray] | None = None

    def __call__(self, block: int) -> ndarray:
        if self._kept is None or self._kept[0] != block:
            self._kept = block, self._make(block)
        return self._kept[1]


class Shuffled:
    """Every data epoch is a new permutation of all samples.

    Args:
        num_samples: Size of the dataset.
        seed: Together with the data epoch the only source of randomness.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        assert num_samples > 0
        self.num_samples, self.seed = num_samples, seed
        self._order = _Last(partial(_epoch_order, num_samples, seed))

    def start(self, block: int) -> int:
        return block * self.num_samples

    def block(self, block: int) -> ndarray:
        return self._order(block)


class Windowed:
    """Keeps rows of one shard together: shards are permuted in every epoch, and a row moves less than a window.

    Reading is nearly sequential: at any time only rows of the last `window` places and the next are open.

    Args:
        shard_sizes: Rows of each shard.
        window: Samples; at 1 a shard is read from front to end.
        seed: Together with the data epoch the only source of randomness.
    """

    def __init__(self, shard_sizes: Sequence[int], window: int, seed: int) -> None:
        self.num_samples = sum(shard_sizes)
        assert self.num_samples > 0
        assert window > 0
        self.shard_sizes, self.window, self.seed = tuple(shard_sizes), window, seed
        self._order = _Last(partial(_windowed_order, self.shard_sizes, window, seed))

    def start(self, block: int) -> int:
        return block * self.num_samples

    def block(self, block: int) -> ndarray:
        return self._order(block)


class Mixed:
    """Several streams side by side: in each block, part i goes on by its quota, at random places among the others.

    A quota need not be whole: after b blocks part i has given `unit * floor(b * quota)` samples, so nothing drifts.

    Args:
        parts: Draws of each part, whose blocks are all of one size.
        offsets: What is added to the indices of each part.
        quotas: Units that each part gives in one block.
        unit: Samples that stay together as far as counts go: those of a homogeneous group, else 1.
        seed: Of the places.
    """

    def __init__(
        self, parts: Sequence[Draws], offsets: Sequence[int], quotas: Sequence[Fraction], unit: int, seed: int
    ) -> None:
        assert len(parts) == len(offsets) == len(quotas) > 0
        self.parts, self.offsets, self.quotas, self.unit, self.seed = parts, offsets, quotas, unit, seed
        self.num_samples = max(1, round(sum(quotas) * unit))

    def start(self, block: int) -> int:
        return sum(self._given(part, block) for part in range(len(self.parts)))

    def block(self, block: int) -> ndarray:
        import numpy as np

        pieces = []
        for part, (draws, offset) in enumerate(zip(self.parts, self.offsets, strict=True)):
            pieces.append(stretch(draws, self._given(part, block), self._given(part, block + 1)) + offset)
        sizes = [len(piece) for piece in pieces]
        owner = np.repeat(np.arange(len(pieces)), sizes)[permutation(sum(sizes), self.seed, "places", block)]
        order = np.empty(sum(sizes), dtype=np.int64)
        for part, piece in enumerate(pieces):
            order[owner == part] = piece
        return order

    def _given(self, part: int, block: int) -> int:
        """Samples of a part in all blocks before this one."""
        return self.unit * int(self.quotas[part] * block)


def stretch(draws: Draws, start: int, stop: int) -> ndarray:
    """Places `start` to `stop` of the endless stream of draws whose blocks are all of one size."""
    import numpy as np

    size, pieces = draws.num_samples, [np.empty(0, dtype=np.int64)]
    for block in range(start // size, -(-stop // size)):
        first = block * size
        pieces.append(draws.block(block)[max(start - first, 0) : stop - first])
    return np.concatenate(pieces)


def draws_of(dataset: Dataset, seed: int, window: int = SHUFFLE_WINDOW, group_size: int = 1) -> Draws:
    """The draws of a dataset: shuffled, windowed where it is `Sharded`, or mixed.

    Args:
        dataset: What is trained on.
        seed: Of the run.
        window: See `Windowed`.
        group_size: Samples that a homogeneous mixture draws from one part: of a micro-batch over all ranks, or of an
            optimizer step where rows are grouped by length.
    """
    if not isinstance(dataset, Mixture):
        return _single(dataset, seed, window)
    parts = [_single(part.dataset, seed_of(seed, "part", part.name), window) for part in dataset.parts]
    unit = group_size if dataset.homogeneous and dataset.mixing != "natural" else 1
    quotas = [quota / unit for quota in dataset.quotas()]
    return Mixed(parts, dataset.offsets[:-1], quotas, unit, seed)


def _single(dataset: Dataset, seed: int, window: int) -> Draws:
    if isinstance(dataset, Sharded):
        return Windowed(dataset.shard_sizes, window, seed)
    return Shuffled(len(dataset), seed)


def _epoch_order(num_samples: int, seed: int, epoch: int) -> ndarray:
    """The order of one data epoch."""
    import torch  # not at the top: the config door reads this room's dataclasses and must stay fast

    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(num_samples, generator=generator).numpy()


def _windowed_order(shard_sizes: tuple[int, ...], window: int, seed: int, epoch: int) -> ndarray:
    import numpy as np

    sizes = np.asarray(shard_sizes, dtype=np.int64)
    turns = permutation(len(sizes), seed, "shards", epoch)
    starts = np.concatenate([[0], np.cumsum(sizes)])[turns]
    lengths = sizes[turns]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    order = np.repeat(starts, lengths) + within
    shift = noise(len(order), seed_of(seed, "window", epoch)) / 2.0**64 * window
    return order[np.argsort(np.arange(len(order)) + shift, kind="stable")]
