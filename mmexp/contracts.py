"""What the rooms of mmexp hand to each other, and nothing else.

Shape legend, the same letters everywhere: B rows, T text positions, M media items in the batch, P patches per item,
N soft tokens per item, Q queries, S signal tokens, E encoder width, D LLM width, V vocabulary, K supervised positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100
"""Label of a position that carries no loss."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A piece of what somebody says."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Medium:
    """A reference to a picture, sound or state that stands at this place of the turn."""

    source: Any
    """An absolute file path, encoded bytes, or a decoded object (for images: `PIL.Image.Image`)."""
    modality: str = "image"

    @property
    def identity(self) -> tuple[str, str | int]:
        """What two media have in common that show the same: the file, or the very object in memory."""
        source = self.source
        return self.modality, str(source) if isinstance(source, str | Path) else id(source)


Size = tuple[int, int]
"""Width and height of an upright picture in pixels."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares (0 to 1) of the upright picture."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """Boxes in a picture at this place of the turn, with the words for what they show. The template writes them."""

    boxes: tuple[Box, ...]
    """At least one; several for several things of one phrase."""
    phrase: str = ""
    """What stands in the boxes; empty for boxes alone."""
    medium: int = 0
    """Which medium of the conversation they lie in, counted in reading order."""


Part = Text | Medium | Region


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One utterance: who speaks, and the parts in reading order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts joined; media leave no trace."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def media(self) -> tuple[Medium, ...]:
        """The media in reading order."""
        return tuple(part for part in self.parts if isinstance(part, Medium))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row of one dataset, free of any model: what a reader returns."""

    id: str
    turns: tuple[Turn, ...]
    dataset: str = ""
    """Name of the dataset it came from; part of every message about this sample."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Every further field of the row, untouched (an evaluator may want `type`, `targets`, ...)."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A rendered piece of a conversation: exactly one of text, a control token or a medium."""

    text: str = ""
    control: str | None = None
    """A special token: `bos` or `eos` by role, any other by its literal name. User text can never become one."""
    medium: Medium | None = None
    supervised: bool = False
    """Whether the tokens of this piece carry loss."""
    fresh: bool | None = None
    """True: from here on text is tokenised on its own, as at a string's start; false: as the middle of a string. A
    segment with nothing else is such a border. None: no border here."""


@dataclass(frozen=True, kw_only=True)
class MediaRun:
    """The slots of one medium in the token sequence: positions `start` to `start + length - 1`."""

    modality: str
    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sample as token ids, labels and transformed media: what the processor returns."""

    id: str
    dataset: str
    input_ids: Tensor
    """int64[T]; slots hold the tokenizer's pad id, which the splice overwrites."""
    labels: Tensor
    """int64[T], aligned with `input_ids`, `IGNORE` where unsupervised."""
    runs: tuple[MediaRun, ...]
    """In reading order; the i-th run of a modality belongs to the i-th entry of `media[modality]`."""
    media: Mapping[str, tuple[Tensor, ...]]
    """Per modality the transformed values; an image is float32[3, H, W], or float32[views, 3, H, W] with `views`."""
    views: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Per modality how many values each medium is; absent where every medium is one value."""
    gather: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """Per modality which soft token goes into which slot of each medium: int64[slots, 2] of view and place in it, place
    -1 for the end of a row; absent where soft tokens fill the slots in order. With `blend` int64[slots, 4, 2]."""
    blend: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """Per modality the shares of the soft tokens in `gather` that a slot is mixed from, float32[slots, 4]; absent where
    every slot holds one."""
    instructions: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """Per modality what its connector reads beside each medium, int64[L] of the connector's own tokenizer; absent where
    it reads nothing."""
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Per modality the name of each medium in the feature cache, empty for one that cannot be named; absent without a
    cache."""
    hits: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    """Per modality whether a medium's entry of `media` is its features from the cache, float[P, E] or float[views, P,
    E], instead of its values; absent without a cache."""
    num_dropped_turns: int = 0
    """Turns cut from the end because the sample was longer than the limit."""
    num_cut_tokens: int = 0
    """Tokens cut from answers because the template limits them (`ChatTemplate.max_answer_tokens`)."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_supervised(self) -> int:
        """How many positions carry loss."""
        return int((self.labels != IGNORE).sum())


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows made of segments (samples). Attention never crosses a segment and positions restart in each one.

    A flat batch is one row that holds all segments; a padded batch has one segment in each row. Both are the same
    code path: what lies behind the last segment of a row is padding. In a shared batch, samples that begin alike are
    one segment with that beginning, and one with the rest of each, which sees the beginning too.
    """

    input_ids: Tensor
    """int64[B, T]"""
    labels: Tensor
    """int64[B, T]; the first position of every segment is `IGNORE`, so the shift by one cannot cross a border, unless
    that segment goes on from another one."""
    positions: Tensor
    """int64[B, T], restarting at 0 in every segment, unless it goes on from another one"""
    segment_lengths: tuple[tuple[int, ...], ...]
    """Per row the lengths of its segments, left to right; the rest of the row is padding."""
    ids: tuple[str, ...]
    """Sample ids in segment order (row by row), for messages and logs."""
    followers: tuple[tuple[int, ...], ...] = ()
    """Per row and segment how many of the segments behind it go on from it, as samples that begin with it: it is none
    itself. Empty where every segment is a sample."""
    previous: Tensor | None = None
    """int64[B * T], the flat place from which each position's token is predicted; None where it is the one in front."""
    prompt_lengths: tuple[tuple[int, ...], ...] = ()
    """Per row and segment how many positions stand in front of its first target; all of it where there is none."""
    datasets: tuple[str, ...] = ()
    """Dataset (part of a mixture) of each of `ids`."""
    meta: tuple[Mapping[str, Any], ...] = ()
    """Further fields of each sample's row, in the order of `ids`."""
    slots: Mapping[str, Tensor] = field(default_factory=dict)
    """Per modality bool[B, T]: where soft tokens go."""
    media: Mapping[str, Tensor] = field(default_factory=dict)
    """Per modality float[M, ...], in the order of their slots. A medium of several views takes several of the M.
    Those of the M that are in `features` are not in here."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """Per modality what the encoder would make of some of the M, float[F, P, E], from the feature cache."""
    order: Mapping[str, Tensor] = field(default_factory=dict)
    """Per modality int64[M]: where each of the M stands in the features of `media` followed by `features`; absent where
    they stand there in order."""
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """As `Item.keys`, of all media in the order of their slots."""
    hits: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    """As `Item.hits`, of all media in the order of their slots."""
    slot_lengths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Per modality the number of slots of each medium."""
    media_owners: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Per modality the sample id of each medium."""
    views: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Per modality how many of the M each medium is; absent where each one is one."""
    gather: Mapping[str, Tensor] = field(default_factory=dict)
    """Per modality int64[slots, 2]: index into M and place in its N soft tokens for every slot, place -1 for the end of
    a row; absent where soft tokens fill the slots in order. With `blend` int64[slots, 4, 2]."""
    blend: Mapping[str, Tensor] = field(default_factory=dict)
    """Per modality float32[slots, 4], the shares of the soft tokens in `gather`; absent where every slot holds one."""
    instructions: Mapping[str, Tensor] = field(default_factory=dict)
    """Per modality int64[M, L], what its connector reads beside each of the M, 0 behind a shorter one; absent where it
    reads nothing."""
    instruction_masks: Mapping[str, Tensor] = field(default_factory=dict)
    """Per modality bool[M, L], false behind the end of an instruction."""
    num_supervised: int = 0
    """Positions that carry loss, known on the CPU so that nobody has to wait for the device."""
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Per reason the ids of samples that were left out of this batch by a counted rule."""
    dropped_datasets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Per reason the dataset of each of the ids in `dropped`."""
    num_dropped_turns: int = 0
    """Turns cut from the ends of over-long samples of this batch."""
    num_cut_tokens: int = 0
    """Tokens cut from answers of this batch because the template limits them."""
    bad_media: tuple[Mapping[str, str], ...] = ()
    """Of each sample that was left out for a medium nobody can read: `id`, `dataset`, `file` and `reason`."""

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`; itself when it is there."""
        if str(self.input_ids.device) == str(device):
            return self

        def move(value: Any) -> Any:
            return {key: tensor.to(device, non_blocking=non_blocking) for key, tensor in value.items()}

        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            positions=self.positions.to(device, non_blocking=non_blocking),
            previous=None if self.previous is None else self.previous.to(device, non_blocking=non_blocking),
            slots=move(self.slots),
            media=move(self.media),
            features=move(self.features),
            order=move(self.order),
            gather=move(self.gather),
            blend=move(self.blend),
            instructions=move(self.instructions),
            instruction_masks=move(self.instruction_masks),
        )

    def encodes(self, modality: str) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What the branch of a modality encodes and what it is spared: `media`, `features` and `order`."""
        return self.media.get(modality), self.features.get(modality), self.order.get(modality)

    def instruction(self, modality: str) -> tuple[Tensor, Tensor] | None:
        """Ids and mask that the connector of a modality reads beside its features; None where it reads nothing."""
        ids = self.instructions.get(modality)
        return None if ids is None else (ids, self.instruction_masks[modality])

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Row, start and end of every segment, in the order of `ids` where no segment goes on from another one."""
        for row, lengths in enumerate(self.segment_lengths):
            start = 0
            for length in lengths:
                yield row, start, start + length
                start += length

    @property
    def num_tokens(self) -> int:
        """Positions that are not padding."""
        return sum(map(sum, self.segment_lengths))


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a forward pass gives to an objective."""

    hidden: Tensor
    """float[B, T, D], the LLM's last hidden states; float[K, D] where rows were asked for"""
    soft: Mapping[str, Tensor]
    """Per modality float[M, N, D], the connector's output"""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Sums and counts of every named part; the module normalises, so that accumulation and ranks stay exact."""

    sums: Mapping[str, Tensor]
    """Per part a scalar with gradient: the loss summed over its `counts`."""
    counts: Mapping[str, int]
    """Per part how many terms were summed (supervised tokens, pairs, ...)."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of a part in the total; 1 when absent."""
    report: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached values that are only logged."""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What others may know of an encoder before its weights exist."""

    width: int
    """E"""
    grid: tuple[int, int]
    """Patch rows and columns of one item."""
    num_prefix: int = 0
    """Positions before the patches (a CLS token that is kept)."""
    item_shape: tuple[int, ...] = ()
    """Shape of the values of one item; an image is (3, S, S)."""

    @property
    def num_patches(self) -> int:
        """P"""
        return self.num_prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True, kw_only=True)
class LlmSpec:
    """What others may know of an LLM before its weights exist."""

    width: int
    """D; 0 where there is no LLM"""
    vocab_size: int
    """Rows of the embedding table, V; without an LLM the ids of the tokenizer that it lends"""
    max_length_tokens: int
    """Longest sequence the positions allow"""
    model_type: str
    """The architecture's name in transformers, for messages"""
    reads_apart: bool = False
    """Whether an encoder reads the prompt and a decoder writes the answer, so that they are two texts."""
    shares_beginnings: bool = False
    """Whether texts that begin alike can have that beginning computed once."""


@dataclass(frozen=True, kw_only=True)
class InstructionSpec:
    """What a connector reads beside features: the words of the turn that shows a medium."""

    tokenizer: str
    """Hub id or folder of the tokenizer."""
    max_tokens: int
    """Longest instruction, the tokenizer's own marks included; a longer one loses its beginning."""
    vocab_size: int
    """Rows of the connector's word embedding."""


class Gather(Protocol):
    """Joins rows of all ranks; with one rank it changes nothing."""

    def __call__(self, rows: Tensor, with_gradient: bool = False) -> tuple[Tensor, int]:
        """[B, ...] to the rows of all ranks in their order, and the index where this rank's own begin.

        Ranks may have different numbers of rows; where other dimensions differ, zeros fill them up. Gradients come back
        only `with_gradient`: each rank's rows then get the sum of what all ranks ask of them.
        """
        ...


class Dataset(Protocol):
    """Random access to samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class Hinted(Protocol):
    """A dataset that can say how long its rows are without reading them as samples."""

    def hints(self) -> Any:
        """numpy int32[rows]: white-space words of all turns, negative for a row without media.

        Source: LLaVA's modality lengths, haotian-liu/LLaVA @ c121f04 llava/train/train.py.
        """


@runtime_checkable
class Sharded(Protocol):
    """A dataset whose rows lie in a few large files, so that reading neighbours is much faster than jumping."""

    shard_sizes: tuple[int, ...]
    """Rows of each shard, in the order of their indices."""


@runtime_checkable
class Preparable(Protocol):
    """Makes files exist before a dataset is opened (the shapes world renders itself)."""

    def prepare(self) -> None: ...
