"""Chat templates as data: conversations become segments. A new template is a YAML file, never a branch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from mmexp.contracts import Medium, Part, Segment, Text, Turn
from mmexp.errors import ConfigError

_MARK = re.compile(r"\{\{|\}\}|\{[^{}]+\}|[{}]")
_TURN = "turn"


@dataclass(frozen=True)
class Piece:
    """One element of a parsed format: literal text, a control token, or the place of the turn."""

    kind: Literal["text", "control", "turn"]
    value: str = ""


@lru_cache(maxsize=256)
def parse_format(text: str) -> tuple[Piece, ...]:
    """Parses a template format such as `"USER: {turn} "`.

    `{turn}` is what was said, `{bos}` and `{eos}` are the tokenizer's special tokens by role, any other name in braces
    (`{<|im_start|>}`) is a special token by its literal name; `{{` and `}}` are plain braces.

    Raises:
        ConfigError: a brace that belongs to no mark.
    """
    pieces: list[Piece] = []
    end = 0
    for mark in _MARK.finditer(text):
        pieces.append(Piece("text", text[end : mark.start()]))
        end = mark.end()
        found = mark.group()
        if found in ("{{", "}}"):
            pieces.append(Piece("text", found[0]))
        elif found in ("{", "}"):
            raise ConfigError(
                f"lone {found!r} in the format {text!r}",
                expected="{turn}, {bos}, {eos}, {<special token>}, or {{ and }} for plain braces",
                fix=f"write {found * 2} for a plain brace",
            )
        else:
            name = found[1:-1]
            pieces.append(Piece("turn") if name == _TURN else Piece("control", name))
    pieces.append(Piece("text", text[end:]))
    return tuple(piece for piece in pieces if piece != Piece("text"))


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How a conversation is written down for one LLM. Formats are explained in `parse_format`.

    Source: haotian-liu/LLaVA @ c121f04 llava/conversation.py and llava/train/train.py for the published ones.
    """

    name: str
    """For messages and manifests."""
    begin: str = "{bos}"
    """Once, before everything."""
    system: str = "{turn} "
    """The system text, when there is one."""
    default_system: str | None = None
    """System text of conversations that bring none; null for no system text."""
    user: str = "USER: {turn} "
    """A user turn."""
    assistant_prompt: str = "ASSISTANT:"
    """Before an answer; also the end of a generation prompt. Never supervised."""
    assistant_answer: str = " {turn}{eos}"
    """The answer: exactly what carries loss. An answer without any text is written, but not supervised."""
    assistant_end: str = ""
    """After the answer, not supervised."""
    media: Literal["inline", "first_if_single"] = "inline"
    """Where media stand in a user turn: where the data has them, or the only one of a turn moved to its front, followed
    by `media_separator` and the turn's text without outer white space (LLaVA)."""
    media_separator: str = "\n"
    user_text: Literal["keep", "drop"] = "keep"
    """`drop` leaves only the media of a user turn (LLaVA's alignment stage)."""
    strip: bool = False
    """Whether every turn loses its outer white space."""
    stop: str | None = None
    """Text that ends an answer when generating, for templates whose answer has no closing special token."""

    def __post_init__(self) -> None:
        """Raises ConfigError when a format cannot be parsed or has `{turn}` too often or in the wrong place."""
        fixed, with_turn = ("begin", "assistant_prompt", "assistant_end"), ("system", "user", "assistant_answer")
        for field in fixed + with_turn:
            try:
                turns = sum(piece.kind == "turn" for piece in parse_format(getattr(self, field)))
            except ConfigError as error:
                raise ConfigError(
                    error.found, expected=error.expected, where=f"template.{field}", fix=error.fix
                ) from None
            if turns > (field in with_turn) or (field in ("user", "assistant_answer") and not turns):
                expected = "no {turn}" if field in fixed else "exactly one {turn}"
                raise ConfigError(f"{turns} {{turn}} in {getattr(self, field)!r}", expected=expected,
                                  where=f"template.{field}")  # fmt: skip
        choices = {"media": ("inline", "first_if_single"), "user_text": ("keep", "drop")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ConfigError(f"{getattr(self, field)!r}", expected=" or ".join(allowed), where=f"template.{field}")

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of all control tokens the template writes, for the check against a tokenizer."""
        formats = (self.begin, self.system, self.user, self.assistant_prompt, self.assistant_answer, self.assistant_end)
        pieces = (piece for text in formats for piece in parse_format(text))
        return tuple(dict.fromkeys(piece.value for piece in pieces if piece.kind == "control"))

    @property
    def stop_controls(self) -> tuple[str, ...]:
        """Control tokens that close an answer: where generation stops."""
        return tuple(piece.value for piece in parse_format(self.assistant_answer) if piece.kind == "control")

    def render(self, turns: Sequence[Turn], generation_prompt: bool = False) -> list[Segment]:
        """Segments of a conversation, in reading order.

        Args:
            turns: At most one system turn, at the front; then users and assistants.
            generation_prompt: End with what stands before the next answer. The result is then by construction a prefix
                of the rendering of the same turns followed by any answer.
        """
        system, rest = (turns[0].text, turns[1:]) if turns and turns[0].role == "system" else (None, turns)
        system = self.default_system if system is None else system
        segments = _fill(self.begin)
        if system is not None:
            segments += _fill(self.system, (Text(text=system.strip() if self.strip else system),))
        for turn in rest:
            segments += self._render_turn(turn)
        return segments + (_fill(self.assistant_prompt) if generation_prompt else [])

    def _render_turn(self, turn: Turn) -> list[Segment]:
        if turn.role != "assistant":
            return _fill(self.user, self._arrange(turn))
        parts = _strip(turn.parts) if self.strip else turn.parts
        answer = _fill(self.assistant_answer, parts, supervised=bool(turn.text.strip()))
        return [*_fill(self.assistant_prompt), *answer, *_fill(self.assistant_end)]

    def _arrange(self, turn: Turn) -> Sequence[Part]:
        """The parts of a user turn as this template wants them."""
        if self.user_text == "drop":
            return turn.media
        if self.media == "first_if_single" and len(turn.media) == 1:
            text = turn.text.strip()
            return (*turn.media, *((Text(text=self.media_separator + text),) if text else ()))
        return _strip(turn.parts) if self.strip else turn.parts


def _fill(text: str, parts: Iterable[Part] = (), supervised: bool = False) -> list[Segment]:
    segments: list[Segment] = []
    for piece in parse_format(text):
        if piece.kind == "text":
            segments.append(Segment(text=piece.value, supervised=supervised))
        elif piece.kind == "control":
            segments.append(Segment(control=piece.value, supervised=supervised))
        else:
            for part in parts:
                medium = part if isinstance(part, Medium) else None
                text_part = part.text if isinstance(part, Text) else ""
                segments.append(Segment(text=text_part, medium=medium, supervised=supervised and medium is None))
    return segments


def _strip(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts without white space at the outer ends of the turn."""
    kept = list(parts)
    while kept and isinstance(kept[0], Text):
        text = kept[0].text.lstrip()
        kept[:1] = [Text(text=text)] if text else []
        if text:
            break
    while kept and isinstance(kept[-1], Text):
        text = kept[-1].text.rstrip()
        kept[-1:] = [Text(text=text)] if text else []
        if text:
            break
    return tuple(kept)
