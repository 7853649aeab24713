"""Chat templates as data: conversations become segments. A new template is a YAML file, never a branch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mmexp.contracts import Segment, Turn
from mmexp.errors import ConfigError
from mmexp.prompt.format import LOSS, NO_LOSS, Piece, check_format, controls_of, parse_format
from mmexp.prompt.region import RegionFormat
from mmexp.prompt.render import Rendering

_CHOICES = {
    "media": ("inline", "first_if_single", "before_turn"),
    "begin_place": ("front", "after_media"),
    "after_medium": ("fresh", "continued"),
    "system_place": ("front", "first_user"),
    "user_text": ("keep", "drop"),
    "answer_cut": ("right", "left", "before_end"),
    "supervise": ("all", "last"),
}


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How a conversation is written down for one LLM. Formats are explained in `parse_format`.

    Every peculiarity of a published template is one of these settings; what each source does stands in its YAML file.
    """

    name: str
    """For messages and manifests."""
    begin: str = "{bos}"
    """Once, before everything; see `begin_place`."""
    begin_place: Literal["front", "after_media"] = "front"
    """`after_media` writes `begin` behind the media that stand before the first user turn (BLIP-2 with OPT)."""
    system: str = "{turn} "
    """The system text, when there is one."""
    system_place: Literal["front", "first_user"] = "front"
    """`first_user` writes the system text inside the first user turn, before what the user says (Llama-2)."""
    default_system: str | None = None
    """System text of conversations that bring none; null for no system text."""
    user: str = "USER: {turn} "
    """A user turn."""
    user_without_media: str | None = None
    """A user turn of a conversation without any medium; null for the same as `user`."""
    next_user: str | None = None
    """A user turn behind an answer; null for the same as the first (MiniGPT-4: the answer's `###` opens it already)."""
    assistant_prompt: str = "ASSISTANT:"
    """Before an answer; also the end of a generation prompt. `{prefix}` takes some of the answer's first words, at
    least one and at most half, as many as the sample's id draws; a generation prompt has none of them."""
    assistant_answer: str = " {turn}{eos}"
    """The answer, which carries loss (but not behind `{/loss}`). One that says nothing is written, not supervised."""
    assistant_end: str = ""
    """After the answer, not supervised."""
    supervise: Literal["all", "last"] = "all"
    """Which answers of a conversation carry loss; an encoder-decoder reads all but the last one."""
    end: str = ""
    """Once, behind the last answer; never in a generation prompt."""
    medium: str = "{medium}"
    """A medium with its tags. A newline at its end takes the place of one that the data has there."""
    media: Literal["inline", "first_if_single", "before_turn"] = "inline"
    """Where media stand in a user turn: where the data has them; the only one of a turn moved to its front, followed by
    `media_separator` and the turn's text without outer white space (LLaVA); or all of them before the `user` format."""
    media_separator: str = "\n"
    after_medium: Literal["fresh", "continued"] = "fresh"
    """How text right behind the slots is tokenised: on its own (a SentencePiece model then puts its prefix space), or
    as the middle of a string."""
    user_text: Literal["keep", "drop"] = "keep"
    """`drop` leaves only the media of a user turn (alignment stages)."""
    prompts: tuple[str, ...] = ()
    """Instructions for user turns that say nothing (or whose text is dropped): one per sample, chosen by its id."""
    strip: bool = False
    """Whether every turn loses its outer white space."""
    region: RegionFormat = field(default_factory=RegionFormat)
    """How boxes are written."""
    stop: str | None = None
    """Text that ends an answer when generating, for templates whose answer has no closing special token."""
    max_answer_tokens: int | None = None
    """Longest stretch of tokens with loss, end mark included: what is longer loses its end mark too, as published."""
    answer_cut: Literal["right", "left", "before_end"] = "right"
    """Which end of an over-long answer is cut; `before_end` cuts in front of its last token, the end mark."""
    new_tokens: tuple[str, ...] = ()
    """Special tokens that the recipe adds to a tokenizer which lacks them; the LLM gets rows for them, which train also
    where the rest of it is frozen (`stage.new_tokens`)."""

    def __post_init__(self) -> None:
        """Raises ConfigError when a format cannot be parsed, has a mark too often or in the wrong place."""
        for name in ("begin", "assistant_end", "end"):
            check_format(getattr(self, name), f"template.{name}", {})
        check_format(self.assistant_prompt, "template.assistant_prompt", {"prefix": False})
        for name in ("system", "user", "user_without_media", "next_user", "assistant_answer"):
            if getattr(self, name) is not None:
                check_format(getattr(self, name), f"template.{name}", {"turn": name != "system"})
        check_format(self.medium, "template.medium", {"medium": True, "number": False})
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{getattr(self, name)!r}", expected=" or ".join(allowed), where=f"template.{name}")
        if self.begin_place == "after_media" and self.media != "before_turn":
            raise ConfigError(f"{self.media} with begin_place=after_media", expected="before_turn",
                              where="template.media")  # fmt: skip
        if self.max_answer_tokens is not None and self.max_answer_tokens < 1:
            raise ConfigError(f"{self.max_answer_tokens}", expected="at least 1, or null for no limit",
                              where="template.max_answer_tokens")  # fmt: skip
        if not all(prompt.strip() for prompt in self.prompts):
            raise ConfigError("an empty prompt", expected="an instruction", where="template.prompts")

    @property
    def formats(self) -> tuple[str, ...]:
        """All formats of turns and media."""
        users = (self.user, self.user_without_media or "", self.next_user or "")
        answers = (self.assistant_prompt, self.assistant_answer, self.assistant_end, self.end)
        return (self.begin, self.system, *users, *answers, self.medium)

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of all control tokens the template writes, for the check against a tokenizer."""
        return tuple(dict.fromkeys((*controls_of(*self.formats), *self.region.controls)))

    @property
    def stop_controls(self) -> tuple[str, ...]:
        """Control tokens that close an answer: where generation stops."""
        pieces = parse_format(self.assistant_answer)
        turn = pieces.index(Piece("value", "turn"))
        return tuple(piece.value for piece in pieces[turn:] if piece.kind == "control")

    @property
    def splits_answers(self) -> bool:
        """Whether the first words of an answer belong to its prompt."""
        return Piece("value", "prefix") in parse_format(self.assistant_prompt)

    def check_apart(self, reader: str) -> None:
        """Raises ConfigError unless a prompt and the answer to it are two texts with an end each.

        Args:
            reader: The architecture that reads the one and writes the other, for the message.
        """
        prompt, answer = parse_format(self.assistant_prompt), parse_format(self.assistant_answer)
        end = Piece("control", "eos")
        apart = prompt[-1:] == answer[-1:] == (end,) and not self.assistant_end and not self.end
        if not apart or self.supervise != "last" or any(piece.value in (LOSS, NO_LOSS) for piece in answer):
            raise ConfigError(
                f"{self.name} writes prompt and answer as one text, and {reader} reads the one and writes the other",
                expected="assistant_prompt and assistant_answer that end with {eos}, loss on all of the answer, nothing"
                " behind it, and supervise: last",
                where="template",
                fix="template=blip2_t5_vqa",
            )

    def render(self, turns: Sequence[Turn], generation_prompt: bool = False, key: str = "") -> list[Segment]:
        """Segments of a conversation, in reading order.

        Args:
            turns: At most one system turn, at the front; then users and assistants.
            generation_prompt: End with what stands before the next answer. The result is then by construction a prefix
                of the rendering of the same turns followed by any answer.
            key: The sample's id, which chooses among `prompts`.

        Raises:
            DataError: a region that cannot be written.
        """
        return Rendering(self, key, any(turn.media for turn in turns)).render(turns, generation_prompt)

    def render_answer(self, turns: Sequence[Turn], key: str = "", with_end: bool = False) -> list[Segment]:
        """A generation prompt and an answer to it, the last of the turns: only that answer carries loss.

        Args:
            turns: As for `render`; the last one is an answer.
            key: As for `render`.
            with_end: Write what ends the answer too, with loss where it carries loss in training.

        Raises:
            DataError: a region that cannot be written.
        """
        return Rendering(self, key, any(turn.media for turn in turns)).render_answer(turns, with_end)
