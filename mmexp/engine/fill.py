"""Fills the feature cache ahead of training: the pictures of a dataset, the frozen encoder, and nothing else."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmexp.contracts import Dataset
from mmexp.data.cache import FeatureStore
from mmexp.engine.chain import load_starts
from mmexp.engine.features import FeatureCache, keep
from mmexp.engine.module import computes_in_bfloat16
from mmexp.errors import ConfigError, MmexpError
from mmexp.model import Branch
from mmexp.prompt import BadMediaError, FeatureLookup, Processor
from mmexp.tuning import store_frozen

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from rich.console import Console
    from torch import Tensor

    from mmexp.engine.job import StageJob


@dataclass
class Filled:
    """What was done."""

    num_media: int = 0
    """Pictures of all rows; one that several rows show counts each time."""
    num_hits: int = 0
    """Of these, whose features were there when their turn came."""
    num_encoded: int = 0
    num_unreadable: int = 0
    num_unnamed: int = 0
    """Neither files nor bytes, so that nothing names their features."""
    num_written: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    folders: list[Path] = field(default_factory=list)
    closed: str = ""
    """Why not everything was kept; empty where it was."""

    def finish(self, stores: Iterable[FeatureStore]) -> None:
        """Writes what waits, and adds up what the stores have done."""
        for store in stores:
            store.flush()
            self.num_written += store.num_written
            self.bytes_written += store.bytes_written
            self.folders.append(store.folder)
            self.closed = self.closed or store.closed


def fill(job: StageJob, console: Console) -> Filled:
    """Encodes what is not there yet, with the precision and on the kind of device that the stage trains with.

    Where a start of the stage is a checkpoint of another program, the whole model is built to place it; otherwise only
    what makes the features is.

    Args:
        job: The stage, with a feature cache.
        console: Gets a bar where it is a terminal.

    Raises:
        ConfigError: there is no encoder, and as `FeatureCache`.
        DataError: a row is broken; pictures that cannot be read are only counted.
    """
    features = FeatureCache.of(job)
    if features is None:
        raise ConfigError("no encoder", expected="a run with pictures", where="encoder")
    started, dataset = time.monotonic(), job.data.build()
    alone = replace(job.trainer, devices=1, num_nodes=1, strategy="auto")
    trainer = alone.build(job.run.path, 1, 1, [])
    branches = _load_branches(job, trainer, features)
    device = trainer.strategy.root_device
    features.open_for(branches, str(trainer.precision), device.type)
    for branch in branches.values():
        trainer.precision_plugin.convert_module(branch).to(device)
    filled, waiting = Filled(), defaultdict[str, list[_Medium]](list)
    for medium in _media(dataset, job, features.stores, filled, console):
        store, queue = features.stores[medium.modality], waiting[medium.modality]
        if medium.key in {other.key for other in queue} or store.get(medium.key) is not None:
            filled.num_hits += 1
            continue
        queue.append(medium)
        if len(queue) >= job.micro_batch_size:
            _encode(queue, branches[medium.modality], features, trainer)
            filled.num_encoded += len(queue)
            queue.clear()
    for modality, queue in waiting.items():
        if queue:
            _encode(queue, branches[modality], features, trainer)
            filled.num_encoded += len(queue)
    filled.finish(features.stores.values())
    filled.seconds = time.monotonic() - started
    return filled


@dataclass(frozen=True)
class _Medium:
    modality: str
    key: str
    values: Tensor
    has_views: bool


def _load_branches(job: StageJob, trainer: Trainer, features: FeatureCache) -> dict[str, Branch]:
    """Per modality the encoder as the stage runs it, and the connector where its trunk's output is kept."""
    prefixes = {modality: "" if modality == "image" else f"{modality}." for modality in job.plan.inputs}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        if any(isinstance(start, Path) for start in job.init_from):
            parts: dict[str, nn.Module] = job.plan.build().parts()
            changed = load_starts(parts, job.init_from)
        else:
            parts = {}
            for modality, prefix in prefixes.items():
                parts[f"{prefix}encoder"] = job.plan.inputs[modality].encoder.build()
                if modality in features.queries:
                    parts[f"{prefix}connector"] = job.plan.build_connector(modality)
            changed = load_starts(parts, job.init_from, is_whole=False)
    branches = {}
    for modality, prefix in prefixes.items():
        keeps = modality in features.queries
        connector: Any = parts[f"{prefix}connector"].eval() if keeps else nn.Identity()
        branches[modality] = Branch(parts[f"{prefix}encoder"].eval(), connector, job.plan.inputs[modality].spec)
        for still in (branches[modality].encoder, *([connector.trunk] if keeps else [])):
            still.requires_grad_(False)
    if job.trainer.cast_frozen and computes_in_bfloat16(trainer):
        wanted = {
            f"{prefixes[m]}{name}": part for m, branch in branches.items() for name, part in branch.named_children()
        }
        store_frozen(wanted, torch.bfloat16, changed)
    return branches


def _encode(media: list[_Medium], branch: Branch, features: FeatureCache, trainer: Trainer) -> None:
    """Encodes media of one modality and keeps what comes out."""
    has_views = media[0].has_views
    values = (torch.cat if has_views else torch.stack)([medium.values for medium in media])
    plugin = trainer.precision_plugin
    with torch.inference_mode(), plugin.forward_context():
        found = branch.stem(plugin.convert_input(values.to(trainer.strategy.root_device)))
    views = [len(medium.values) for medium in media] if has_views else None
    keys = [medium.key for medium in media]
    keep(features.stores[media[0].modality], found, keys, [False] * len(media), views)


def _media(
    dataset: Dataset, job: StageJob, stores: Mapping[str, FeatureLookup], filled: Filled, console: Console
) -> Iterator[_Medium]:
    """All media that can be named and are not kept yet; counts those that are left out."""
    from rich.progress import Progress
    from torch.utils.data import DataLoader

    rows: Any = _Rows(dataset, job.plan.processor, stores)
    loader = DataLoader(rows, batch_size=None, shuffle=False, num_workers=job.num_workers, collate_fn=_unchanged)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=len(dataset))
        for row in loader:
            if isinstance(row, MmexpError):
                raise row
            media, counts = row
            filled.num_media += len(media) + counts.total()
            filled.num_hits += counts["hit"]
            filled.num_unreadable += counts["unreadable"]
            filled.num_unnamed += counts["unnamed"]
            yield from media
            bar.advance(task)


def _unchanged(row: Any) -> Any:
    """In the place of torch's own conversion, which would add a Counter to itself."""
    return row


class _Rows:
    """Row number to its media that have to be encoded, and what became of the others."""

    def __init__(self, dataset: Dataset, processor: Processor, stores: Mapping[str, FeatureLookup]) -> None:
        self.dataset, self.processor, self.stores = dataset, processor, stores

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[list[_Medium], Counter[str]] | MmexpError:
        media, counts = list[_Medium](), Counter[str]()
        try:
            reader = self.processor.reader(self.dataset[index])
            for medium in reader.media:
                try:
                    loaded = reader.load(medium, self.stores.get(medium.modality))
                except BadMediaError:
                    counts["unreadable"] += 1
                    continue
                if loaded.hit or not loaded.key:
                    counts["hit" if loaded.hit else "unnamed"] += 1
                else:
                    media.append(_Medium(medium.modality, loaded.key, loaded.values, loaded.views is not None))
        except MmexpError as error:
            return error.with_traceback(None)
        return media, counts
