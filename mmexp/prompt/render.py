"""One conversation on its way from turns to segments, as a template's settings say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mmexp.contracts import Medium, Part, Region, Segment, Text, Turn
from mmexp.prompt.format import LOSS, PIECE, Piece, parse_format

if TYPE_CHECKING:
    from mmexp.prompt.template import ChatTemplate


class Rendering:
    """Renders one conversation and counts its media while it goes.

    Args:
        template: The settings.
        key: The sample's id, which chooses among the template's prompts.
        has_media: Whether any turn holds a medium.
    """

    def __init__(self, template: ChatTemplate, key: str, has_media: bool) -> None:
        self.template, self.key = template, key
        without = template.user_without_media
        self.user = template.user if has_media or without is None else without
        self.num_media = 0

    def render(self, turns: Sequence[Turn], generation_prompt: bool) -> list[Segment]:
        """All segments; see `ChatTemplate.render`."""
        template = self.template
        system, rest = (turns[0].text, turns[1:]) if turns and turns[0].role == "system" else (None, turns)
        system = template.default_system if system is None else system
        head: list[Segment] = []
        if system is not None:
            head = self._fill(template.system, (Text(text=system.strip() if template.strip else system),))
        begin = self._fill(template.begin)
        late, inside = template.begin_place == "after_media", template.system_place == "first_user"
        segments = ([] if late else begin) + ([] if inside else head)
        begin, head = begin if late else [], head if inside else []
        last = max((place for place, turn in enumerate(rest) if turn.role == "assistant"), default=0)
        for place, turn in enumerate(rest):
            if turn.role == "assistant":
                segments += self._assistant(turn, supervised=template.supervise == "all" or place == last)
            else:
                segments += self._user(turn, begin, head)
            begin, head = [], []
        segments += begin + head
        if generation_prompt:
            return segments + self._fill(template.assistant_prompt)
        ended = bool(rest) and rest[-1].role == "assistant"
        return segments + (self._fill(template.end) if ended else [])

    def render_answer(self, turns: Sequence[Turn], with_end: bool) -> list[Segment]:
        """As `ChatTemplate.render_answer`."""
        *before, last = turns
        prompt = [replace(segment, supervised=False) for segment in self.render(before, generation_prompt=True)]
        parts = strip(last.parts) if self.template.strip else last.parts
        return prompt + self._fill(self.template.assistant_answer, parts, supervised=True, open_ended=not with_end)

    def _user(self, turn: Turn, begin: list[Segment], system: list[Segment]) -> list[Segment]:
        """A user turn; `begin` goes behind the media before it, `system` in front of what the user says."""
        before, parts = self._arrange(turn)
        media = [segment for medium in before for segment in self._part(medium, False)]
        segments = media + begin + self._fill(self.user, parts, inside=system)
        self.user = self.template.next_user or self.user
        return segments

    def _assistant(self, turn: Turn, supervised: bool) -> list[Segment]:
        template = self.template
        parts: Sequence[Part] = strip(turn.parts) if template.strip else turn.parts
        prefix, parts = split(parts, self.key) if template.splits_answers else ((), parts)
        prompt = self._fill(template.assistant_prompt, prefix)
        says = supervised and says_something(parts)
        answer = self._fill(template.assistant_answer, parts, supervised=says, silent=not says)
        return [*prompt, *answer, *self._fill(template.assistant_end)]

    def _arrange(self, turn: Turn) -> tuple[Sequence[Part], Sequence[Part]]:
        """The media before a user turn and the parts inside it, as the template wants them."""
        template = self.template
        parts: Sequence[Part] = turn.media if template.user_text == "drop" else turn.parts
        if template.prompts and not says_something(parts):
            parts = (*turn.media, Text(text=choose(template.prompts, self.key)))
        words = tuple(part for part in parts if not isinstance(part, Medium))
        if template.media == "before_turn":
            return turn.media, strip(words) if template.strip or turn.media else words
        if template.media == "first_if_single" and len(turn.media) == 1:
            words = strip(words)
            return (), (*turn.media, *((Text(text=template.media_separator), *words) if words else ()))
        parts = strip(parts) if template.strip else parts
        return (), (_without_line_breaks(parts) if template.medium.endswith("\n") else parts)

    def _fill(
        self,
        text: str,
        parts: Iterable[Part] = (),
        supervised: bool = False,
        silent: bool = False,
        inside: Sequence[Segment] = (),
        open_ended: bool = False,
    ) -> list[Segment]:
        """A format as segments.

        Args:
            parts: What stands at `{turn}`.
            supervised: Whether the format carries loss until a mark says otherwise.
            silent: Whether it carries none whatever the marks say (an answer that says nothing).
            inside: Segments at `{turn}` before the parts.
            open_ended: Leave out what stands behind `{turn}`.
        """
        segments: list[Segment] = []
        loss = supervised
        for piece in parse_format(text):
            if piece == Piece("switch", PIECE):
                segments.append(Segment(fresh=True))
            elif piece.kind == "switch":
                loss = piece.value == LOSS and not silent
            elif piece.kind == "value":
                segments += inside
                for part in parts:
                    segments += self._part(part, loss)
                if open_ended:
                    break
            else:
                segments.append(_segment(piece, loss))
        return segments

    def _part(self, part: Part, loss: bool) -> list[Segment]:
        """One part of a turn; a medium and its tags never carry loss."""
        if isinstance(part, Text):
            return [Segment(text=part.text, supervised=loss)]
        if isinstance(part, Region):
            pieces = self.template.region.write(part)
            return [_segment(piece, loss) for piece in pieces]
        self.num_media += 1
        segments: list[Segment] = []
        for piece in parse_format(self.template.medium):
            if piece == Piece("value", "medium"):
                segments.append(Segment(medium=part))
                if self.template.after_medium == "continued":
                    segments.append(Segment(fresh=False))
            else:
                number = Piece("text", str(self.num_media))
                segments.append(_segment(number if piece.kind == "value" else piece, False))
        return segments


def _segment(piece: Piece, loss: bool) -> Segment:
    """A control token or literal text."""
    if piece.kind == "control":
        return Segment(control=piece.value, supervised=loss)
    return Segment(text=piece.value, supervised=loss)


def choose(prompts: Sequence[str], key: str) -> str:
    """The prompt of a sample: the same in every epoch, process and version of Python."""
    return prompts[_draw(key) % len(prompts)]


def split(parts: Sequence[Part], key: str) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """An answer's first words, between one and half of them as its sample's id draws, and the rest.

    An answer of one word, or with boxes in it, is not split.
    Source: the authors of BLIP-2 on the prefix of stage 2, salesforce/LAVIS issue 139.
    """
    words = "".join(part.text for part in parts if isinstance(part, Text)).split()
    if len(words) < 2 or not all(isinstance(part, Text) for part in parts):
        return (), tuple(parts)
    length = 1 + _draw(key) % (len(words) // 2)
    return (Text(text=" ".join(words[:length])),), (Text(text=" ".join(words[length:])),)


def _draw(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def says_something(parts: Sequence[Part]) -> bool:
    """Whether there are words or boxes, not only media and white space."""
    return any(isinstance(part, Region) or (isinstance(part, Text) and part.text.strip() != "") for part in parts)


def strip(parts: Sequence[Part]) -> tuple[Part, ...]:
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


def _without_line_breaks(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts without the newline that data write behind a medium, for templates whose media end with one."""
    kept: list[Part] = []
    for part in parts:
        behind = bool(kept) and isinstance(kept[-1], Medium)
        if behind and isinstance(part, Text) and part.text.startswith("\n"):
            part = Text(text=part.text[1:])
        if part != Text(text=""):
            kept.append(part)
    return tuple(kept)
