"""The typed spine of a run: everything that is not a component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

COMPONENTS = ("encoder", "connector", "llm", "template", "data", "objective", "optim", "trainer")
"""Top-level nodes that hold one component each."""
COLLECTIONS = ("evaluation", "logger")
"""Top-level nodes that hold any number of components by name."""


@dataclass(frozen=True, kw_only=True)
class PathsConfig:
    """Folders; the only place, besides loggers, that may read the environment."""

    outputs: str = "outputs"
    """Run directories are made below it."""
    shapes: str = "outputs/cache/shapes"
    """Where the shapes world renders itself; shared by runs."""
    data: str = "data"
    """Where published datasets are expected."""
    parts: str = ""
    """The small pretrained parts of this package."""


@dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """How samples become batches."""

    image_fit: Literal["crop", "pad", "squash"] = "crop"
    """How a picture becomes a square: cut its centre, pad with the mean colour, or change its proportions."""
    max_length_tokens: int = 2048
    """Longest sample, soft tokens included; whole turns are cut from the end."""
    row: Literal["flat", "padded"] = "flat"
    """One row of segments without padding, or one padded row a sample."""
    num_workers: int = 0
    """Processes that load data."""
    check_rows: int = 2000
    """Rows that are tokenised before training to see that they supervise something."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters, for the leaves `lora` of the policy."""

    rank: int = 128
    alpha: float = 256
    dropout: float = 0.05
    targets: str | list[str] = "all-linear"
    """`all-linear` (all but the output head), or module names."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One column of a paper's training table."""

    name: str
    """Folder of its runs."""
    kind: Literal["align", "instruct", "pretrain"]
    """What it teaches; data of the shapes world and benchmarks follow it."""
    policy: Mapping[str, Any]
    """What moves: a tree shaped like the model with the leaves frozen, lora and full."""
    init_from: str | None = None
    """Finished run directory whose weights come first; null starts from the base weights."""
    lr: float
    """Peak learning rate."""
    lr_by_part: Mapping[str, float] = field(default_factory=dict)
    """Peak learning rates of single parts."""
    batch_size: int
    """Samples of one optimizer step over all devices."""
    micro_batch_size: int
    """Samples one device takes at once."""
    epochs: float = 1.0
    """Passes over the data."""
    max_steps: int | None = None
    """Optimizer steps; goes before epochs."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Of matrices; norms and biases do not decay."""
    grad_clip: float | None = None
    """Largest total gradient norm; null clips nothing."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    twin: Mapping[str, Any] = field(default_factory=dict)
    """The same settings at laptop scale; `scale=shapes` takes them."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The spine of `train.yaml`."""

    name: str
    """Recipe or experiment; first folder below `paths.outputs`."""
    paper: str | None = None
    """What is reproduced."""
    stages: list[str] = field(default_factory=list)
    """Stage choices that `mmexp.pipeline` runs in order."""
    seed: int = 0
    """Seed of data order, connector weights and dropout."""
    run_id: str | None = None
    """Last folder of the run; null makes a new one, an existing one is continued."""
    resume: str | None = None
    """Run directory to continue with its own configuration."""
    paths: PathsConfig = field(default_factory=PathsConfig)
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    stage: StageConfig
