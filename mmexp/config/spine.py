"""The typed spine of a run: everything that is not a component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mmexp.config.multirun import SweepConfig
from mmexp.errors import ConfigError

COMPONENTS = ("encoder", "connector", "llm", "template", "data", "objective", "optim", "trainer")
"""Top-level nodes that hold one component each."""
COLLECTIONS = ("evaluation", "logger")
"""Top-level nodes that hold any number of components by name."""
PARTS = ("encoder", "connector", "llm")
"""The parts of a model, which the policy tree names."""


def own_keys(cls: type) -> tuple[str, ...]:
    """Names of the fields of one of the classes here."""
    return tuple(field.name for field in fields(cls))


@dataclass(frozen=True, kw_only=True)
class PathsConfig:
    """Folders; the only place, besides loggers, that may read the environment."""

    outputs: str = "outputs"
    """Run directories are made below it."""
    shapes: str = "outputs/cache/shapes"
    """Where the shapes world renders itself; shared by runs."""
    data: str = "data"
    """Where published datasets are expected."""
    cache: str = "outputs/cache"
    """What was counted or computed once and may be deleted: token lengths, features of frozen encoders."""
    models: str | None = None
    """Folder in which a hub id `owner/name` is looked for first; null goes to the Hugging Face cache."""
    parts: str = ""
    """The small pretrained parts of this package."""


@dataclass(frozen=True, kw_only=True)
class TilesConfig:
    """InternVL's tiles, for `processor.image_fit=tiles`."""

    min_tiles: int = 1
    """Least number of tiles of a picture."""
    max_tiles: int = 12
    """Largest number of tiles; the pictures of one conversation share it."""
    thumbnail: bool = True
    """Whether several tiles are followed by a view of the whole picture."""


@dataclass(frozen=True, kw_only=True)
class AnyResConfig:
    """LLaVA-NeXT's tiles, for `processor.image_fit=anyres`."""

    grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    """Canvases to choose from, columns and rows of tiles; of equally good ones the first is taken."""
    unpad: bool = True
    """Whether soft tokens of the canvas's padding are left out."""
    newline: bool = True
    """Whether a learned vector ends every row of soft tokens."""
    max_views: int | None = None
    """`anyres_max_N` of LLaVA-OneVision: a canvas with more soft tokens than N views is shrunk bilinearly to as many,
    where that is more than 1.1 a side; null for no limit. The view of the whole comes on top."""


@dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """How samples become batches."""

    image_fit: Literal["crop", "pad", "squash", "tiles", "anyres"] = "crop"
    """How a picture becomes a square: cut its centre, pad with the mean colour, or change its proportions; or several
    squares: tiles (InternVL) or anyres (LLaVA-NeXT)."""
    tiles: TilesConfig = field(default_factory=TilesConfig)
    """Settings of tiles."""
    anyres: AnyResConfig = field(default_factory=AnyResConfig)
    """Settings of anyres."""
    box_frame: Literal["view", "picture"] = "view"
    """What boxes are written relative to: what the encoder sees (LLaVA-1.5: the padded square), or the picture."""
    exact_pixels: bool = False
    """Whether pictures are decoded whole and resized by Pillow, as the published code does. Otherwise torch resizes,
    and a JPEG is decoded smaller where twice the pixels of the view remain."""
    backdrop: tuple[int, int, int] | None = None
    """What lies under transparent pixels: red, green and blue, 0 to 255, such as [255,255,255]; null shows the colour
    that the file hides under them, as Pillow's convert("RGB") and with it the reference recipes do."""
    bad_media_cap: float = 0.001
    """Largest share (0 to 1) of samples that may be left out because a medium cannot be read; above it the run stops.
    Each training process counts the samples of all its data workers, and judges them as a share of its part of the
    rows, or of the samples that it has seen once these are more."""
    max_length_tokens: int = 2048
    """Longest sample, soft tokens included; whole turns are cut from the end."""
    row: Literal["flat", "padded", "packed", "shared"] = "flat"
    """`flat`: one row of segments without padding; `padded`: one padded row a sample; `packed`: several samples in each
    row of at most `max_length_tokens`; `shared`: as flat, but samples that show the same picture files stand side by
    side, and what they begin with is computed once. Where rows are packed or shared, batch sizes and epochs count rows:
    a shared row is a picture with all its texts."""
    order: Literal["shuffled", "length", "modality_length"] = "shuffled"
    """Plain shuffle, or optimizer steps of samples of like length (and, as LLaVA, of one modality)."""
    shuffle_window: int = 8192
    """Samples; how far the shuffle of data in shards moves one. Smaller reads tars more evenly, larger mixes better."""
    packing_window: int = 4096
    """Samples that are packed together."""
    max_shared: int = 16
    """Texts of a shared row; a picture with more makes several rows."""
    log_ids: bool = False
    """Whether data_order.jsonl in the run directory lists the samples of every micro-batch."""
    feature_cache: Literal["none", "read_write"] = "none"
    """Whether what a frozen encoder makes of a picture is kept below `paths.cache` and read again by every run with the
    same pictures, transform, encoder weights, precision and kind of device; such a picture is not even decoded."""
    feature_cache_gb: float = 50.0
    """Largest size of all kept features in GB; what is beyond it is encoded every time."""
    num_workers: int | None = None
    """Processes that load data, beside each one that trains; null takes up to 4 where a GPU trains, and none on a CPU,
    which they would only share."""
    worker_timeout_s: float = 300
    """How long one of them may prepare a batch; one that hangs ends the run."""
    check_rows: int = 2000
    """Rows that are tokenised before training to see that they supervise something."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a cap that is no share, or no size."""
        if not 0 <= self.bad_media_cap <= 1:
            raise ConfigError(f"{self.bad_media_cap}", expected="a share, 0 to 1", where="bad_media_cap",
                              fix="0.001 is one sample in a thousand")  # fmt: skip
        if self.feature_cache_gb <= 0:
            raise ConfigError(f"{self.feature_cache_gb:g}", expected="more than 0 GB", where="feature_cache_gb",
                              fix="feature_cache=none keeps nothing")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters, for the leaves `lora` of the policy."""

    rank: int = 128
    """Inner width of an adapter."""
    alpha: float = 256
    """Adapters are scaled by alpha / rank."""
    dropout: float = 0.05
    """Dropout before an adapter, 0 to 1."""
    targets: str | tuple[str, ...] = "all-linear"
    """`all-linear` (all but the output head), or module names."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One column of a paper's training table."""

    name: str
    """Folder of its runs."""
    kind: Literal["represent", "align", "instruct", "pretrain"]
    """What it teaches; data of the shapes world and benchmarks follow it."""
    policy: Mapping[str, Any]
    """What moves: a tree shaped like the model with the leaves frozen, lora and full."""
    live_dropout: tuple[str, ...] = ()
    """Frozen parts whose dropout stays active, for published runs that never put their frozen LLM in eval mode."""
    new_tokens: Literal["full", "frozen"] = "full"
    """Whether the rows of tokens that the template adds train where the policy freezes their LLM."""
    allow_random_frozen: bool = False
    """Whether a frozen part may keep random weights, which are otherwise an error; for ablations."""
    init_from: str | tuple[str, ...] | None = None
    """Whose weights come first: a finished run directory, or a checkpoint of LLaVA, LAVIS or MiniGPT-4; several follow
    each other. Null starts from the base weights."""
    lr: float
    """Peak learning rate."""
    lr_by_part: Mapping[str, float] = field(default_factory=dict)
    """Peak learning rates of single parts."""
    layer_decay: Mapping[str, float] = field(default_factory=dict)
    """Per part the factor, above 0 and at most 1, of the learning rate from one transformer block to the one before it;
    what comes before the blocks learns slowest, what comes after them at the part's rate."""
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
    """Adapters of the leaves `lora`."""
    twin: Mapping[str, Any] = field(default_factory=dict)
    """The same settings at laptop scale; `scale=shapes` takes them."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The spine of `train.yaml`."""

    name: str
    """Recipe or experiment; first folder below `paths.outputs`."""
    paper: str | None = None
    """What is reproduced."""
    stages: tuple[str, ...] = ()
    """Stage choices that `mmexp.pipeline` runs in order."""
    seed: int = 0
    """Seed of data order, connector weights and dropout."""
    world_seed: int = 0
    """Which shapes world: settings are chosen in another one (1, 2, ...) than the one they are reported on (0)."""
    run_id: str | None = None
    """Last folder of the run; null makes a new one, an existing one is continued."""
    resume: str | None = None
    """Run directory to continue with its own configuration."""
    inexact_resume: bool = False
    """Whether a run may go on although its data, stage.micro_batch_size, seed, number of processes, precision, or
    versions of packages are not those of its checkpoint. The manifest then says what differs."""
    paths: PathsConfig = field(default_factory=PathsConfig)
    """Folders."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """How `-m` schedules jobs."""
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    """How samples become batches."""
    stage: StageConfig
    """What this run trains, and how."""
