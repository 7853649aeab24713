"""From the settings of a run to the order of its rows, with what makes that order the same when the run is resumed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.contracts import Dataset, Sharded
from mmexp.data.grouping import Grouping
from mmexp.data.hints import MEDIA_WORDS, word_hints
from mmexp.data.lengths import token_lengths
from mmexp.data.mixture import Mixture
from mmexp.data.order import SHUFFLE_WINDOW, draws_of
from mmexp.data.packing import PACKING_WINDOW, Packer
from mmexp.data.sampler import RunOrder
from mmexp.data.sharing import SharedRows, groups_of
from mmexp.errors import ConfigError
from mmexp.prompt import Processor

if TYPE_CHECKING:
    from numpy import ndarray


_SEVERAL = {
    "packed": "needs long and short samples side by side; rows that are equally full share a micro-batch anyway",
    "shared": "puts samples of all lengths that show the same picture side by side",
}


@dataclass(frozen=True, kw_only=True)
class OrderSettings:
    """What the order of a run follows from, besides its data."""

    seed: int
    micro_batch_size: int
    """Rows of one micro-batch on one rank."""
    accumulate: int = 1
    """Micro-batches of an optimizer step on one rank."""
    world_size: int = 1
    order: str = "shuffled"
    """`shuffled`, `length` or `modality_length`."""
    row: str = "flat"
    """`packed` and `shared` put several samples into a row."""
    max_shared: int = 16
    """Samples of a shared row."""
    shuffle_window: int = SHUFFLE_WINDOW
    """Samples; of data in shards."""
    packing_window: int = PACKING_WINDOW
    """Samples that are packed together."""
    cache: Path | None = None
    """Folder that keeps token lengths."""
    num_workers: int = 0
    """Processes that count tokens."""

    def __post_init__(self) -> None:
        """Raises ConfigError for an order that rows of several samples cannot have, and for windows without a size."""
        if self.row in _SEVERAL and self.order != "shuffled":
            raise ConfigError(
                f"{self.order} while processor.row is {self.row}, which {_SEVERAL[self.row]}",
                expected="shuffled",
                where="processor.order",
                fix="processor.order=shuffled, or processor.row=padded",
            )
        for name in ("shuffle_window", "packing_window", "max_shared"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)}", expected="at least 1", where=f"processor.{name}")


def build_order(dataset: Dataset, processor: Processor, settings: OrderSettings) -> RunOrder:
    """The order of a run.

    Raises:
        DataError: rows are tokenised for packing, and one is broken.
    """
    rows = settings.micro_batch_size * settings.world_size
    step = rows * settings.accumulate
    by_part = isinstance(dataset, Mixture) and dataset.homogeneous
    by_length = settings.order != "shuffled"
    draws = draws_of(dataset, settings.seed, settings.shuffle_window, step if by_length else rows)
    packer = grouping = None
    identity: dict[str, Any] = dict(dataset.identity()) if isinstance(dataset, Mixture) else {}
    lengths = _word_lengths(dataset, settings.order) if by_length else None
    if settings.row == "shared":
        packer = SharedRows(groups=groups_of(dataset), most=settings.max_shared)
        identity["processor.row"] = f"shared by at most {settings.max_shared} samples, pictures {packer.digest}"
    if settings.row == "packed":
        tokens = token_lengths(dataset, processor, settings.cache, settings.num_workers)
        packer = Packer(
            lengths=tokens,
            capacity=processor.max_length_tokens,
            group_size=rows,
            window=settings.packing_window,
            seed=settings.seed,
        )
        digest = hashlib.sha256(tokens.tobytes()).hexdigest()[:8]
        size = f"of {processor.max_length_tokens} tokens in windows of {settings.packing_window} samples"
        identity["processor.row"] = f"packed {size}, token lengths {digest}"
    if by_part or by_length:
        grouping = Grouping(
            size=step if by_length else rows,
            num_chunks=settings.world_size * settings.accumulate,
            seed=settings.seed,
        )
    if by_length:
        identity |= {"processor.order": settings.order, "stage.batch_size": step}
    if _is_windowed(dataset):
        identity["processor.shuffle_window"] = settings.shuffle_window
    kinds = _kinds(dataset, settings.order) if by_part or settings.order == "modality_length" else None
    return RunOrder(draws, packer=packer, grouping=grouping, kinds=kinds, lengths=lengths, identity=identity)


def _word_lengths(dataset: Dataset, order: str) -> ndarray:
    """int64[rows], what rows are sorted by."""
    import numpy as np

    hints = word_hints(dataset).astype(np.int64)
    return np.abs(hints) + (MEDIA_WORDS * (hints > 0) if order == "length" else 0)


def _kinds(dataset: Dataset, order: str) -> ndarray:
    """int64[rows], what must not share a group: part, and modality, as far as they matter."""
    import numpy as np

    kinds = np.zeros(len(dataset), dtype=np.int64)
    if isinstance(dataset, Mixture) and dataset.homogeneous:
        kinds = dataset.kinds() * 2
    return kinds + (word_hints(dataset) > 0 if order == "modality_length" else 0)


def _is_windowed(dataset: Dataset) -> bool:
    parts = [part.dataset for part in dataset.parts] if isinstance(dataset, Mixture) else [dataset]
    return any(isinstance(part, Sharded) for part in parts)
