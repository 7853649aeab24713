"""From a sample to an `Item`: template, tokens, slots and transformed media. Holds no module; data workers run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from mmexp.contracts import IGNORE, Box, Item, Medium, Sample, Segment, Turn
from mmexp.errors import DataError
from mmexp.prompt.boxtext import WHOLE, BoxText
from mmexp.prompt.encoded import Encoded
from mmexp.prompt.exchanges import check_roles, describe, exchanges_of, join, media_of
from mmexp.prompt.image import BadMediaError
from mmexp.prompt.instruction import InstructionTokenizer, instruction_of
from mmexp.prompt.media import FeatureLookup, SampleMedia, SlotRule
from mmexp.prompt.template import ChatTemplate
from mmexp.prompt.tokenizer import SegmentTokenizer
from mmexp.prompt.transparency import Colour

if TYPE_CHECKING:
    from torch import Tensor

Render = Callable[[Sequence[Turn]], list[Segment]]


class TooLongError(DataError):
    """Not even the first user and assistant turn fit. Training drops such a sample by a counted rule."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A sample before its media are decoded: tokens, supervision, slots, and the media that belong to the slots."""

    encoded: Encoded
    media: tuple[Medium, ...]
    instructions: tuple[tuple[int, ...] | None, ...] = ()
    """What the connector reads beside each of `media`; None for one beside which it reads nothing."""
    num_dropped_turns: int = 0
    reader: SampleMedia | None = None
    """What has read the headers of the media already."""

    @property
    def num_supervised(self) -> int:
        """How many tokens carry loss."""
        return sum(self.encoded.supervised)


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Makes tensors from samples; the same object serves training, evaluation, chat and previews."""

    template: ChatTemplate
    tokenizer: SegmentTokenizer
    max_length_tokens: int
    """Longest sequence, slots included."""
    slot_lengths: Mapping[str, int | SlotRule] = field(default_factory=dict)
    """Per modality the soft tokens of one medium, a number that the connector owns, or a rule by the medium's size."""
    transforms: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    """Per modality the encoder's transform; must be picklable."""
    box_frame: Literal["view", "picture"] = "view"
    """What boxes are written relative to: the view that the encoder sees (LLaVA-1.5: the padded square), or the
    picture. With squash and with tiles the two are the same."""
    exact: bool = False
    """Whether every JPEG is decoded whole, also where a smaller one would do. How a picture is resized is a matter of
    its transform."""
    backdrop: Colour | None = None
    """What lies under transparent pixels, red, green and blue; None shows the colour hidden under them."""

    instructions: Mapping[str, InstructionTokenizer] = field(default_factory=dict)
    """Per modality the tokenizer of a connector that reads the words beside a medium."""

    def __post_init__(self) -> None:
        """Raises ConfigError when the tokenizer lacks a control token of the template."""
        self.tokenizer.check(self.template)

    @property
    def boxes(self) -> BoxText:
        """How boxes are written in answers: to read them back into the picture."""
        return BoxText(form=self.template.region, frame=self._frame)

    def encode(self, sample: Sample, kept: Mapping[str, FeatureLookup] | None = None) -> Item:
        """The sample with labels, for training. `Item.num_supervised` is 0 when nothing carries loss.

        Args:
            sample: What a reader returned.
            kept: Per modality features of a frozen encoder; media that are in there are not decoded.

        Raises:
            TooLongError: not even the first exchange fits.
            DataError: no answer, roles out of order, or a medium that cannot be read.
        """
        return self.load(self.layout(sample), sample, kept)

    def encode_prompt(
        self,
        turns: Sequence[Turn],
        id: str = "prompt",  # noqa: A002  # the field of Sample and Item that it becomes
        dataset: str = "",
        meta: Mapping[str, Any] | None = None,
    ) -> Item:
        """The turns followed by the generation prompt; its ids are a prefix of the training ids.

        Raises:
            TooLongError: longer than the limit.
            DataError: the last turn is an answer, roles out of order, or a medium that cannot be read.
        """
        sample = Sample(id=id, dataset=dataset, turns=tuple(turns), meta=meta or {})
        return self.load(self.prompt_layout(sample), sample)

    def prompt_layout(self, sample: Sample) -> Layout:
        """Everything `encode_prompt` decides, without decoding a medium.

        Raises:
            As `encode_prompt`, but for unreadable media.
        """
        check_roles(sample)
        if not sample.turns or sample.turns[-1].role == "assistant":
            raise DataError("nothing to answer", expected="a user turn at the end", where=describe(sample))
        reader, render = self.reader(sample), partial(self.template.render, generation_prompt=True, key=sample.id)
        return self._whole(self._encode(sample.turns, sample, reader, render), sample, reader)

    def answer_layout(self, sample: Sample, with_end: bool = False) -> Layout:
        """The sample with loss on its last turn alone, an answer to be scored. Nothing of it is cut.

        Args:
            sample: Its prompt becomes what `prompt_layout` makes of the turns before the last one.
            with_end: Score what ends the answer too, as far as it carries loss in training.

        Raises:
            As `prompt_layout`.
        """
        check_roles(sample)
        reader, render = self.reader(sample), partial(self.template.render_answer, key=sample.id, with_end=with_end)
        return self._whole(self._encode(sample.turns, sample, reader, render, is_cut=False), sample, reader)

    def layout(self, sample: Sample) -> Layout:
        """Everything `encode` decides, without decoding a medium: whole exchanges go from the end until it fits.

        Raises:
            As `encode`, but for unreadable media.
        """
        check_roles(sample)
        if not any(turn.role == "assistant" for turn in sample.turns):
            raise DataError(
                "a conversation without an answer",
                expected="at least one assistant turn (`gpt` in LLaVA JSON)",
                where=describe(sample),
                fix="remove the row, or add the answer",
            )
        exchanges = exchanges_of(sample.turns)
        reader, render = self.reader(sample), partial(self.template.render, key=sample.id)
        encoded = self._encode(sample.turns, sample, reader, render)
        if len(encoded.ids) <= self.max_length_tokens:
            return self._laid(encoded, sample.turns, sample, reader)
        best: tuple[Encoded, int] | None = None
        low, high = 1, len(exchanges) - 1
        while low <= high:  # a longer beginning of the conversation is never shorter in tokens
            middle = (low + high) // 2
            shorter = self._encode(join(exchanges[:middle]), sample, reader, render)
            if len(shorter.ids) <= self.max_length_tokens:
                best, low = (shorter, middle), middle + 1
            else:
                high = middle - 1
        if best is None:
            raise self._too_long(len(encoded.ids), sample)
        kept = join(exchanges[: best[1]])
        return self._laid(best[0], kept, sample, reader)

    def _whole(self, encoded: Encoded, sample: Sample, reader: SampleMedia) -> Layout:
        """The layout of all turns. Raises TooLongError."""
        if len(encoded.ids) > self.max_length_tokens:
            raise self._too_long(len(encoded.ids), sample)
        return self._laid(encoded, sample.turns, sample, reader)

    def _laid(self, encoded: Encoded, turns: Sequence[Turn], sample: Sample, reader: SampleMedia) -> Layout:
        """The layout of the turns that are kept."""
        instructions: list[tuple[int, ...] | None] = []
        if self.instructions:
            for turn in self._seen(turns, reader):
                text = instruction_of(turn, self.template, sample.id) if turn.media else ""
                readers = [self.instructions.get(medium.modality) for medium in turn.media]
                instructions += [reader and reader.encode(text) for reader in readers]
        return Layout(
            encoded=encoded,
            media=media_of(turns),
            instructions=tuple(instructions),
            num_dropped_turns=len(sample.turns) - len(turns),
            reader=reader,
        )

    def _seen(self, turns: Sequence[Turn], reader: SampleMedia) -> Sequence[Turn]:
        """The turns with boxes as they are written."""
        return reader.in_view(turns) if self.box_frame == "view" else turns

    def _frame(self, sample: Sample, medium: int) -> Box:
        return self.reader(sample).window(medium) if self.box_frame == "view" else WHOLE

    def reader(self, sample: Sample) -> SampleMedia:
        """What reads the media of a sample."""
        return SampleMedia(sample.turns, describe(sample), self.transforms, self.exact, self.backdrop)

    def _encode(
        self, turns: Sequence[Turn], sample: Sample, reader: SampleMedia, render: Render, is_cut: bool = True
    ) -> Encoded:
        try:
            encoded = self.tokenizer.encode(render(self._seen(turns, reader)), reader.slot_lengths(self.slot_lengths))
            encoded.limit_answers(self.template.max_answer_tokens if is_cut else None, self.template.answer_cut)
            return encoded
        except BadMediaError:
            raise
        except DataError as error:
            where = describe(sample)
            raise type(error)(error.found, expected=error.expected, where=where, fix=error.fix) from None

    def _too_long(self, length: int, sample: Sample) -> TooLongError:
        return TooLongError(
            f"{length} tokens, and the first exchange alone does not fit",
            expected=f"at most {self.max_length_tokens} tokens, slots included",
            where=describe(sample),
            fix="raise processor.max_length_tokens (up to what the LLM allows), or shorten the text",
        )

    def load(self, layout: Layout, sample: Sample, kept: Mapping[str, FeatureLookup] | None = None) -> Item:
        """The item of a layout: its tokens, and its media decoded, or the features that are `kept` of them.

        Raises:
            BadMediaError: a medium cannot be read.
        """
        import torch  # not at the top: the config door reads this room's dataclasses and must stay fast

        encoded = layout.encoded
        input_ids = torch.tensor(encoded.ids, dtype=torch.int64)
        supervised = torch.tensor(encoded.supervised, dtype=torch.bool)
        return Item(
            id=sample.id,
            dataset=sample.dataset,
            input_ids=input_ids,
            labels=input_ids.masked_fill(~supervised, IGNORE),
            runs=tuple(encoded.runs),
            **(layout.reader or self.reader(sample)).load_all(layout.media, kept or {}),
            instructions=_instructions(layout),
            num_dropped_turns=layout.num_dropped_turns,
            num_cut_tokens=encoded.num_cut_tokens,
            meta=sample.meta,
        )


def _instructions(layout: Layout) -> dict[str, tuple[Tensor, ...]]:
    """As `Item.instructions`."""
    import torch

    found: dict[str, tuple[Tensor, ...]] = {}
    for medium, ids in zip(layout.media, layout.instructions, strict=bool(layout.instructions)):
        if ids is not None:
            found[medium.modality] = (*found.get(medium.modality, ()), torch.tensor(ids, dtype=torch.int64))
    return found
