"""Training batches for Lightning, with the position of the run in this module's own state."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mmexp.contracts import Batch, Dataset, Item
from mmexp.data.collate import Collator
from mmexp.data.dataset import BAD_MEDIA, CAPS, DropCounts, Dropped, TrainingData, fingerprint
from mmexp.data.order import draws_of
from mmexp.data.sampler import RunOrder, RunSampler
from mmexp.errors import CheckpointError, DataError, MmexpError
from mmexp.prompt import FeatureLookup, Processor

WORKER_TIMEOUT_S = 300
"""A worker that gives nothing for so long is stuck; without a timeout the run would wait for ever."""


_USUAL = {"processor.order": "shuffled", "processor.row": "one sample a row", "data.mixing": "no mixture"}
"""What a checkpoint means that does not say otherwise."""


class MultimodalDataModule(LightningDataModule):
    """The batches of a whole run, as one Lightning epoch; data epochs exist only in the sampler.

    The Trainer needs `use_distributed_sampler=False`, and the engine calls `advance` after each micro-batch.

    Args:
        dataset: Samples.
        processor: Samples to items.
        collator: Items to a batch.
        micro_batch_size: Rows of one micro-batch on one rank.
        num_micro_batches: Of the whole run, on each rank.
        seed: Of the order.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
        order: Rows of the run; None for one sample a row, shuffled.
        bad_media_cap: Largest share of this process's samples that may be left out because a medium cannot be read.
        inexact: Whether a checkpoint of other data, or of another number of processes, is gone on from.
        worker_timeout_s: How long a worker may prepare one batch.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        processor: Processor,
        collator: Collator,
        micro_batch_size: int,
        num_micro_batches: int,
        seed: int,
        num_workers: int = 0,
        order: RunOrder | None = None,
        bad_media_cap: float = CAPS[BAD_MEDIA],
        inexact: bool = False,
        worker_timeout_s: float = WORKER_TIMEOUT_S,
    ) -> None:
        super().__init__()
        self.inexact, self.worker_timeout_s = inexact, worker_timeout_s
        self.differences: list[str] = []
        """What is another now than in the checkpoint that was resumed; only with `inexact`."""
        self.dataset, self.processor, self.collator = dataset, processor, collator
        self.micro_batch_size, self.num_micro_batches = micro_batch_size, num_micro_batches
        self.seed, self.num_workers = seed, num_workers
        self.order = order or RunOrder(draws_of(dataset, seed))
        self.features: Mapping[str, FeatureLookup] = {}
        """Per modality features that were kept; set it before the loader is made."""
        self.position = 0
        """Micro-batches trained so far."""
        self.num_positions = self.num_tokens = 0
        """Positions of all batches so far, and those that were not padding."""
        self.drop_counts = DropCounts(bad_media_cap=bad_media_cap, num_samples=len(dataset))

    def advance(self, batch: Batch | None = None) -> None:
        """Moves the position behind a trained micro-batch, and counts what was left out of it.

        Raises:
            DataError: too many samples were left out.
        """
        self.position += 1
        if batch is not None:
            self.num_positions += batch.input_ids.numel()
            self.num_tokens += batch.num_tokens
            self.drop_counts.update(batch)

    def train_dataloader(self) -> DataLoader:
        """Micro-batches from `position` to the end of the run. Uses no global random state."""
        self.drop_counts.num_samples = -(-len(self.dataset) // self._world_size)
        sampler = RunSampler(
            order=self.order,
            batch_size=self.micro_batch_size,
            num_micro_batches=self.num_micro_batches,
            position=self.position,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self._world_size,
        )
        self._loader = _Loader(
            _Carrying(TrainingData(self.dataset, self.processor, self.features)),
            batch_sampler=sampler,
            collate_fn=_CarryingCollator(self.collator),
            num_workers=self.num_workers,
            timeout=self.worker_timeout_s if self.num_workers else 0,
            pin_memory=False,
            generator=torch.Generator().manual_seed(self.seed),
        )
        return self._loader

    def take_waited_s(self) -> float:
        """Seconds that training has waited for batches since this was last asked."""
        waited, self._loader.waited_s = self._loader.waited_s, 0.0
        return waited

    def state_dict(self) -> dict[str, Any]:
        """Position, counts, and what must be equal for the position to mean the same samples."""
        return {
            "position": self.position,
            "num_positions": self.num_positions,
            "num_tokens": self.num_tokens,
            **self.drop_counts.state(),
            "identity": self._identity(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues at the saved position.

        Raises:
            CheckpointError: other data, batch size, seed or number of processes than the checkpoint's.
        """
        saved, here = state_dict["identity"], self._identity()
        usual = {name: _USUAL.get(name) for name in dict.fromkeys([*here, *saved])}
        saved, here = {**usual, **saved}, {**usual, **here}
        self.differences = [
            f"{name} is {here[name]}, the checkpoint has {saved[name]}" for name in here if saved[name] != here[name]
        ]
        if self.differences and not self.inexact:
            raise CheckpointError(
                "; ".join(self.differences),
                expected="the same data in the same order, so that no sample is lost or doubled",
                where="resume",
                fix="resume with the settings of the run's config.yaml, accept another course of it with "
                "inexact_resume=true, or start a new run from its weights",
            )
        self.position = state_dict["position"]
        self.num_positions, self.num_tokens = state_dict.get("num_positions", 0), state_dict.get("num_tokens", 0)
        self.drop_counts.restore(state_dict)

    @property
    def padding_waste(self) -> float:
        """Share of the positions of all batches so far that were padding."""
        return 1 - self.num_tokens / max(self.num_positions, 1) if self.num_positions else 0.0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _identity(self) -> dict[str, Any]:
        if not hasattr(self, "_fingerprint"):
            self._fingerprint = fingerprint(self.dataset)
        return {
            "number of rows": len(self.dataset),
            "data hash": self._fingerprint[:16],
            "stage.micro_batch_size": self.micro_batch_size,
            "number of processes": self._world_size,
            "seed": self.seed,
            **self.order.identity,
        }


class _Carrying(TorchDataset):
    """Brings our errors out of a worker as values: torch would rebuild them as one string with a traceback in it."""

    def __init__(self, data: TrainingData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Item | Dropped | MmexpError:
        try:
            return self.data[index]
        except MmexpError as error:
            return error.with_traceback(None)


class _CarryingCollator:
    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, entries: Sequence[Item | Dropped | MmexpError]) -> Batch | MmexpError:
        try:
            usable = [entry for entry in entries if not isinstance(entry, MmexpError)]
            broken = next((entry for entry in entries if isinstance(entry, MmexpError)), None)
            return broken or self.collator(usable)
        except MmexpError as error:
            return error.with_traceback(None)


class _Loader(DataLoader):
    """Raises a carried error when its batch is due, not earlier, and knows how long it was waited for."""

    waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch's is one of its own iterators
        try:
            batches = super().__iter__()
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                self.waited_s += time.perf_counter() - started
                if batch is None:
                    return
                if isinstance(batch, MmexpError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise _worker_error(error) from error


def _worker_error(error: RuntimeError) -> DataError:
    """A worker that has died or hangs, in our words; torch says both with RuntimeError."""
    found = " ".join(str(error).split())
    if "timed out" in found:
        fix = "look at the storage of the pictures, or processor.worker_timeout_s=<more>"
    else:
        fix = "a worker is mostly ended for want of memory: fewer processor.num_workers, or a larger /dev/shm"
    return DataError(found, expected="a batch from every worker in time", where="processor.num_workers", fix=fix)
