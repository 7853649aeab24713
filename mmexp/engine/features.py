"""The feature cache in training: what frozen encoders make of pictures is kept, and pictures that are known are spared.

Lightning types its hooks for any module; these take a `TrainingModule`, hence `type: ignore[override]`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from torch import nn

from mmexp.data.cache import FeatureStore
from mmexp.engine.fingerprint import describe_features, name_of, plain, require_repeatable
from mmexp.engine.ranks import is_main, total
from mmexp.errors import ConfigError
from mmexp.whole import write_json

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor

    from mmexp.contracts import Batch
    from mmexp.engine.job import StageJob
    from mmexp.engine.module import TrainingModule
    from mmexp.model import Branch, Plan

log = logging.getLogger(__name__)

_ABOUT = "about.json"
_GB = 1e9


class FeatureCache(Callback):
    """Opens a store for every branch once its weights are there, gives it to the data, and fills it from the training.

    Args:
        folder: Holds one folder for each encoder and transform.
        max_gb: Largest size of all of them.
        plan: Of the model.
        queries: Modalities of which the output of the connector's trunk is kept, not the encoder's features.

    Raises:
        ConfigError: a transform is an augmentation, or does not say what it does.
    """

    def __init__(self, folder: Path, max_gb: float, plan: Plan, queries: Collection[str] = ()) -> None:
        self.folder, self.max_gb, self.plan, self.queries = folder, max_gb, plan, queries
        self.stores: dict[str, FeatureStore] = {}
        self.found: dict[str, Any] = {}
        """Figures of all processes, once training has ended."""
        self._outputs: dict[str, Tensor] = {}
        self._estimated: set[str] = set()
        self._num_hits = self._num_misses = 0
        for transform in plan.transforms.values():
            require_repeatable(transform)

    @classmethod
    def of(cls, job: StageJob) -> FeatureCache | None:
        """That of a stage; None where it has none.

        Raises:
            ConfigError: the model is sharded out, and as the constructor.
        """
        if job.feature_cache_gb is None or job.cache is None or not job.plan.inputs:
            return None
        if job.trainer.shares_weights:
            raise ConfigError(
                f"{job.trainer.strategy}, but processor.feature_cache=read_write",
                expected="a whole encoder in each process: one that has to encode nothing would leave the others "
                "waiting for its share",
                where="trainer.strategy",
                fix="processor.feature_cache=none, or trainer=ddp_bf16",
            )
        queries = {modality for modality in job.plan.inputs if _keeps_queries(job, modality)}
        return cls(job.cache / "features", job.feature_cache_gb, job.plan, queries)

    def open(self, module: TrainingModule) -> None:
        """Finds the store of every branch. The module's weights are those it trains with, on the CPU."""
        assert module.model is not None
        trainer = module.trainer
        branches: Any = module.model.inputs
        self.open_for(branches, str(trainer.precision), trainer.strategy.root_device.type)

    def open_for(self, branches: Mapping[str, Branch], precision: str, device: str) -> None:
        """As `open`, without a module; says to each branch what of it is kept.

        Args:
            branches: Per modality.
            precision: As Lightning names it.
            device: Kind of device that encodes.

        Raises:
            ConfigError: an encoder trains.
        """
        processor = self.plan.processor
        for modality, branch in branches.items():
            branch.keeps_queries = modality in self.queries
            stem = branch.stem_modules
            if any(module.training or any(p.requires_grad for p in module.parameters()) for module in stem):
                raise ConfigError(f"the {modality} encoder trains", expected="a frozen one",
                                  where="stage.policy.encoder", fix="processor.feature_cache=none")  # fmt: skip
            settings = {
                "modality": modality,
                "exact": processor.exact,
                "backdrop": list(processor.backdrop or ()),
                "precision": precision,
                "device": device,
            }
            config, transform = self.plan.inputs[modality].encoder, self.plan.transforms[modality]
            if branch.keeps_queries:
                settings["connector"] = plain(self.plan.inputs[modality].connector, leave_out=("init",))
            whole = stem[0] if len(stem) == 1 else nn.ModuleList(stem)
            facts = describe_features(whole, config, transform, settings)
            store = FeatureStore(self.folder / name_of(facts), self.max_gb * _GB)
            if is_main():
                _describe(store.folder, facts)
                store.sweep()
            self.stores[modality] = store

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        trainer.datamodule.features = self.stores  # type: ignore[attr-defined]
        assert pl_module.model is not None
        for modality, store in self.stores.items():
            branch: Any = pl_module.model.inputs[modality]
            branch.stem_modules[-1].register_forward_hook(partial(self._note, modality))
            log.info("feature cache: %d pictures are in %s, %.3g of %.3g GB used", store.num_kept, store.folder,
                     store.bytes_used / _GB, self.max_gb)  # fmt: skip

    def on_train_batch_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        for modality, hits in batch.hits.items():
            self._num_hits += sum(hits)
            self._num_misses += len(hits) - sum(hits)
            if not all(hits) and modality in self._outputs:
                features, views = self._outputs[modality], batch.views.get(modality)
                self._estimate(modality, features, len(features) / hits.count(False), len(trainer.datamodule.dataset))  # type: ignore[attr-defined]
                keep(self.stores[modality], features, batch.keys[modality], hits, views)
        self._outputs.clear()

    def on_train_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        self._flush()
        written = sum(store.num_written for store in self.stores.values())
        size = sum(store.bytes_written for store in self.stores.values())
        counts = total(trainer, [self._num_hits, self._num_misses, written, size / 2**20])
        self.found = dict(zip(("hits", "misses", "written"), map(int, counts), strict=False))
        self.found["written_mb"] = round(counts[3], 1)
        every = max(1, self.found["hits"] + self.found["misses"])
        log.info("feature cache: %d of %d pictures were found (%.0f %%), %d encoded, %d written (%.1f MB)",
                 self.found["hits"], every, 100 * self.found["hits"] / every, self.found["misses"],
                 self.found["written"], self.found["written_mb"])  # fmt: skip

    def on_exception(self, trainer: Trainer, pl_module: TrainingModule, exception: BaseException) -> None:  # type: ignore[override]
        self._flush()

    def _estimate(self, modality: str, features: Tensor, num_views: float, num_rows: int) -> None:
        """Says once, of the first pictures that are encoded, how large all of them would be."""
        if modality in self._estimated:
            return
        self._estimated.add(modality)
        each = features[0].numel() * features.element_size() * num_views
        needed = "" if each * num_rows <= self.max_gb * _GB else ", more than processor.feature_cache_gb"
        log.info("feature cache: %.3g MB a picture, %.3g GB for %d rows with one each%s",
                 each / 2**20, each * num_rows / _GB, num_rows, needed)  # fmt: skip

    def _flush(self) -> None:
        for store in self.stores.values():
            store.flush()

    def _note(self, modality: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._outputs[modality] = output.detach()


def _keeps_queries(job: StageJob, modality: str) -> bool:
    """Whether what the connector's trunk makes of a picture stays the same during a stage, and nothing else is asked
    for: neither text beside the picture nor, by the objective, the features themselves."""
    prefix = "" if modality == "image" else f"{modality}."
    trunk = getattr(job.plan.inputs[modality].connector, "trunk", None)
    tree = job.policy.get(f"{prefix}connector")
    own = tree.get(trunk) if isinstance(tree, Mapping) and trunk in tree else tree
    is_still = _is_frozen(own) and _is_frozen(job.policy.get(f"{prefix}encoder"))
    has_dropout = f"{prefix}connector" in job.live_dropout
    return trunk is not None and is_still and not has_dropout and not getattr(job.objective, "embeds", False)


def _is_frozen(tree: Any) -> bool:
    """Whether a subtree of a policy opens nothing."""
    return all(map(_is_frozen, tree.values())) if isinstance(tree, Mapping) else tree == "frozen"


def keep(
    store: FeatureStore, features: Tensor, keys: Sequence[str], hits: Sequence[bool], views: Sequence[int] | None
) -> None:
    """Puts what was just encoded into a store.

    Args:
        store: Of this encoder.
        features: Of the media that were no hits, float[M - F, P, E].
        keys: Of all media of the batch.
        hits: Whether a medium's features came from the cache.
        views: How many of the M each medium is; None where each one is one.
    """
    start = 0
    for number, (key, is_hit) in enumerate(zip(keys, hits, strict=True)):
        if is_hit:
            continue
        count = 1 if views is None else views[number]
        if key:
            store.add(key, features[start] if views is None else features[start : start + count])
        start += count


def _describe(folder: Path, facts: Mapping[str, Any]) -> None:
    """Says in the folder what its features are of; several processes may say so at once."""
    file = folder / _ABOUT
    if file.is_file():
        return
    try:
        write_json(file, facts)
    except OSError as error:
        log.warning("%s cannot be written (%s)", file, error.strerror or error)
