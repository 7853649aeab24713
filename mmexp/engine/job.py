"""One stage as plain objects: what trains, on what, how."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.contracts import Sample
from mmexp.data import RunOrder
from mmexp.engine.chain import Start
from mmexp.engine.manifest import RunDir
from mmexp.engine.trackers import Tracking
from mmexp.errors import ConfigError
from mmexp.tuning import LoraSettings

if TYPE_CHECKING:
    from mmexp.engine.optim import AdamWCosineConfig
    from mmexp.engine.pace import Speed
    from mmexp.engine.trainer import TrainerConfig
    from mmexp.evaluation import BenchmarkConfig
    from mmexp.model import MultimodalModel, Plan
    from mmexp.objective import ObjectiveConfig


Draw = Callable[["MultimodalModel", "Plan", Sample, Path], list[Path]]
"""The model in eval mode, its plan, a sample and a folder, to the picture files that were written there."""


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """This model, on this data, with this objective, moving these parts, starting from there."""

    run: RunDir
    label: str
    """Name of the stage, for bars and messages."""
    plan: Plan
    data: Any
    """A config with `build() -> Dataset`."""
    objective: ObjectiveConfig
    policy: Mapping[str, Any]
    init_from: Sequence[Start]
    lora: LoraSettings
    live_dropout: Sequence[str] = ()
    """Frozen parts whose dropout stays active."""
    new_tokens: str = "full"
    """Whether rows of new tokens train in a frozen LLM: full or frozen."""
    allow_random_frozen: bool = False
    """Whether a frozen part may have weights that nothing has loaded."""
    lr: float
    lr_by_part: Mapping[str, float]
    layer_decay: Mapping[str, float] = field(default_factory=dict)
    """Per part the factor of the learning rate from a block to the one before it."""
    weight_decay: float
    warmup_ratio: float
    grad_clip: float | None
    batch_size: int
    """Samples of one optimizer step over all devices."""
    micro_batch_size: int
    """Samples that one device takes at once."""
    epochs: float
    """Passes over the data; `trainer.max_steps` or `max_steps` go before it."""
    max_steps: int | None
    optim: AdamWCosineConfig
    trainer: TrainerConfig
    row: str
    """How the collator lays out a batch: flat, padded, packed or shared."""
    num_workers: int
    seed: int
    check_rows: int
    """How many rows are tokenised before training to see that they supervise something."""
    order: str = "shuffled"
    """shuffled, length or modality_length."""
    shuffle_window: int = 8192
    """Samples; of data in shards."""
    packing_window: int = 4096
    """Samples that are packed together."""
    max_shared: int = 16
    """Samples of a shared row."""
    cache: Path | None = None
    """Folder that keeps token lengths and features; None counts lengths anew."""
    feature_cache_gb: float | None = None
    """Largest size of what is kept of frozen encoders' features; None keeps nothing."""
    log_ids: bool = False
    """Whether the samples of every micro-batch are written to data_order.jsonl."""
    bad_media_cap: float = 0.001
    """Largest share of samples that may be left out because a medium cannot be read."""
    worker_timeout_s: float = 300
    """How long a worker may prepare one batch."""
    benchmarks: Mapping[str, BenchmarkConfig] = field(default_factory=dict)
    """What `trainer.evaluate_every_n_steps` asks the model, by name."""
    draw: Draw | None = None
    """Draws the attention of an answer, for `trainer.evaluate_attention`."""
    speed: Speed | None = None
    """What utilisation is measured by; None where the device's peak is not known."""
    inexact: bool = False
    """Whether a run is continued although data, processes, precision or versions are not those of its checkpoint."""
    tracking: Tracking = field(default_factory=Tracking)
    """Where figures go besides metrics.jsonl; opened when training starts, finished by the caller."""

    @property
    def accumulate(self) -> int:
        """Micro-batches of one optimizer step on one device."""
        step = self.micro_batch_size * self.trainer.world_size
        if self.batch_size % step:
            raise ConfigError(
                f"{self.batch_size}",
                expected=f"a multiple of micro_batch_size x devices = {step}",
                where="stage.batch_size",
                fix=f"stage.batch_size={math.ceil(self.batch_size / step) * step}",
            )
        return self.batch_size // step

    def num_steps(self, order: RunOrder) -> int:
        """Optimizer steps of the whole stage."""
        if self.trainer.max_steps is not None:
            return self.trainer.max_steps
        if self.max_steps is not None:
            return self.max_steps
        return max(1, math.ceil(order.num_rows(self.epochs) / self.batch_size))
