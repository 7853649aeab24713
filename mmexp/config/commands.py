"""What commands take that is not of a run: one typed class for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mmexp.config.spine import PathsConfig
from mmexp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """What `mmexp.preview` takes besides the keys of a run."""

    n: int
    """How many samples."""
    out: str | None
    """JSONL file for the samples as token ids; null writes none."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"{self.n}", expected="a number of samples, at least 1", where="n")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What `mmexp.doctor` takes besides the keys of a run."""

    gpu: str | None
    """The card it should fit: rtx3090, rtx4090, a100_40gb, a100_80gb, h100_80gb or h200_141gb; null sizes nothing."""
    utilisation: float
    """Share of a card's peak that training reaches, above 0 to 1. Published LLaVA-1.5-7B: 0.29 and 0.23."""
    tokens: int | None
    """Tokens of a sample, soft tokens included; null takes the data's, or what is known of them."""
    rows: int | None
    """Rows of one epoch; null takes the data's, or what is known of them."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a utilisation that is no share, and for no token or row."""
        if not 0 < self.utilisation <= 1:
            raise ConfigError(f"{self.utilisation:g}", expected="a share, above 0 to 1", where="utilisation")
        for name in ("tokens", "rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{value}", expected="at least 1, or null", where=name)


@dataclass(frozen=True, kw_only=True)
class DataCheckConfig:
    """What `mmexp.data check` and `stats` take besides the keys of a run."""

    against: tuple[str, ...]
    """Other annotation files (of any format) that must share no picture and no conversation with the data."""
    out: str | None
    """The page; null for `data_check.html` in the working directory."""


@dataclass(frozen=True, kw_only=True)
class DataConvertConfig:
    """What `mmexp.data convert` takes besides the keys of a run."""

    to: Literal["llava", "webdataset"]
    """LLaVA JSON with a folder of pictures, or tar shards."""
    out: str
    """New folder."""
    shard_rows: int
    """Rows of one shard."""


@dataclass(frozen=True, kw_only=True)
class DataFetchConfig:
    """What `mmexp.data fetch` takes besides the keys of a run."""

    download: bool
    """Whether to download what is missing; false only lists it."""


@dataclass(frozen=True, kw_only=True)
class DataCaptionConfig:
    """What `mmexp.data caption` takes."""

    run: str
    """Directory of the run that describes."""
    out: str
    """New folder, or one that this command began."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Node of the pictures' dataset; none given takes that of the run."""
    template: Mapping[str, Any]
    """Node of the chat template that it is asked in."""
    rewrite: Mapping[str, Any] = field(default_factory=dict)
    """Node of who rewrites descriptions with flaws; none given leaves them out."""
    rewrite_all: bool = False
    """Whether descriptions without a flaw are rewritten too, as the paper did."""
    limit: int | None
    """At most this many rows, drawn by `seed`; null takes all."""
    prompt: str
    """The first thing that is asked."""
    continue_prompt: str
    """Asked where the first answer is short."""
    min_tokens: int
    """A first answer with fewer tokens is short."""
    max_new_tokens: int
    """Longest answer."""
    temperature: float
    """0 always takes the likeliest token."""
    top_p: float
    """Sample among the likeliest tokens that together reach this probability."""
    repetition_penalty: float
    """Above 1, tokens that were already said become less likely."""
    batch_size: int
    """Pictures that are described at once."""
    seed: int
    """Seed of the rows and of sampling."""
    world_seed: int = 0
    """Which shapes world, where `data=shapes`."""
    paths: PathsConfig = field(default_factory=PathsConfig)
    """Folders of the data given here."""
    stage: Mapping[str, Any] = field(default_factory=dict)
    """`kind`, for data=shapes_world."""

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers out of range."""
        for name in ("batch_size", "max_new_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{value}", expected="at least 1", where=name)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `mmexp.evaluate` takes."""

    run: str
    """A run directory."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """Benchmark name to its node; none given takes those of the run."""
    splits: tuple[str, ...] | None = None
    """Only these splits; null takes all."""
    world_seed: int = 0
    """Which shapes world, where `evaluation=` names its benchmarks."""
    limit: int | None = None
    """At most this many samples of a split; null takes all."""
    share: str | None = None
    """INDEX/COUNT, such as 0/4: this process answers one of so many parts; the call without it makes the figures."""
    track: bool = True
    """Whether the figures also go to the trackers that the run was trained with."""
    paths: PathsConfig = field(default_factory=PathsConfig)
    """Folders of the benchmarks given here."""


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """What `mmexp.chat` takes."""

    run: str
    """A run directory."""
    image: str | None = None
    """Picture of the first turn."""
    message: str | None = None
    """Say this, print the answer and end; null opens a conversation."""
    temperature: float = 0.0
    """0 always takes the likeliest token."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together reach this probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were already said become less likely."""
    max_new_tokens: int = 128
    """Longest answer."""
    seed: int = 0
    """Seed of sampling."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What `mmexp.export` takes."""

    run: str
    """A run directory."""
    out: str
    """New folder."""
    form: Literal["merged", "adapter"] = "merged"
    """A whole model with adapters folded in, or the LLM's adapter alone in peft's format."""
    image: str | None = None
    """A picture of yours to compare the two models on, besides the built-in ones and those of the run's data."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What `mmexp.compare` takes."""

    runs: str | tuple[str, ...] = ()
    """Run directories, sweeps, folders with runs below, or globs."""
    wandb: str | None = None
    """W&B project, `entity/project`, in place of `runs`."""
    group: str | None = None
    """Only runs of this W&B group."""
    out: str | tuple[str, ...] = ()
    """Files to write: .html, .md, .tex, .csv."""
    metric: str | None = None
    """The figure that ranks, its whole name or its end; null takes the first of the first benchmark."""
    baseline: str | None = None
    """What the other runs are tested against: a group's label, or part of it; null takes the best."""
    max_samples: int = 500
    """Samples of each benchmark that the page shows."""

    def __post_init__(self) -> None:
        """Raises ConfigError for no source, for two, and for no sample."""
        if not self.places and self.wandb is None:
            raise ConfigError("nothing to compare", expected="run directories, or a W&B project", where="runs",
                              fix="python -m mmexp.compare outputs/<name>/<stage> out=compare.html")  # fmt: skip
        if self.places and self.wandb is not None:
            raise ConfigError("both runs and wandb are given", expected="one of them", where="wandb")
        if self.group is not None and self.wandb is None:
            raise ConfigError("a group without a W&B project", expected="wandb=entity/project", where="group")
        if self.max_samples < 1:
            raise ConfigError(f"{self.max_samples}", expected="at least 1", where="max_samples")

    @property
    def places(self) -> tuple[str, ...]:
        """`runs`, one or many."""
        return (self.runs,) if isinstance(self.runs, str) else self.runs

    @property
    def files(self) -> tuple[str, ...]:
        """`out`, one or many."""
        return (self.out,) if isinstance(self.out, str) else self.out
