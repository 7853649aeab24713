"""LLaVA's JSON layout: rows with `id`, `image` and `conversations`, as everybody adopted it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmexp.contracts import Medium, Part, Role, Sample, Text, Turn
from mmexp.data.readers.boxes import split_boxes
from mmexp.data.readers.parts import (
    PLACEHOLDER,
    check_marks,
    check_order,
    check_path,
    others,
    refuse_unread,
    split_marks,
)
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.errors import ConfigError, DataError

_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"
}  # fmt: skip

_UNREAD = frozenset({"images", "video", "videos", "audio", "audios", "chosen", "rejected"})


@dataclass(frozen=True, kw_only=True)
class LlavaJsonConfig(RowsConfig):
    """A JSON list or JSONL file of LLaVA rows.

    `image` is a path, a list of paths, or absent; `<image>` in a human turn marks where a picture stands, and there
    must be as many marks as pictures. In answers `<image>` is plain text. Answers before the first human turn are
    skipped, as LLaVA's own preprocessing does. Every other field of a row goes to `Sample.meta`.
    """

    boxes: Literal["text", "regions"] = "text"
    """`regions` makes boxes that stand in the texts, `[0.12, 0.34, 0.56, 0.78]` in shares of the picture before them,
    regions that the template writes in its own notation; in answers with the words in front as their phrase."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boxes not in ("text", "regions"):
            raise ConfigError(f"{self.boxes!r}", expected="text or regions", where="data.boxes")

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        _check_row(row, number)
        return self.reread(row, number)

    def reread(self, row: dict[str, Any], number: int) -> Sample:
        turns = _turns(row, _images(row))
        turns = _with_regions(turns) if self.boxes == "regions" else turns
        return Sample(id=row_id(row, number), turns=turns, meta=others(row, "id", "image", "conversations"))

    def check(self, row: dict[str, Any], number: int) -> int:
        return _check_row(row, number)


def _images(row: dict[str, Any]) -> list[str]:
    found = row.get("image")
    return [] if found is None else [found] if isinstance(found, str) else found


def _check_row(row: dict[str, Any], number: int) -> int:
    """The length hint of a row. Raises DataError (without a place) when it is not as `LlavaJsonConfig` describes it.

    Written for speed: a mixture of 665,000 rows passes here while somebody waits.
    """
    images = _images(row)
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise DataError(f"`image` is {row['image']!r}", expected="a path or a list of paths")
    for image in images:
        check_path(image)
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        found = "missing" if "conversations" not in row else repr(turns)[:60]
        raise DataError(f"`conversations` is {found}", expected="a list of {from, value} turns")
    if not _UNREAD.isdisjoint(row):
        refuse_unread(row, _UNREAD)
    roles: list[Role] = []
    num_words = 0
    for turn in turns:
        try:
            num_words += len(turn["value"].split())
            roles.append(_ROLES[turn["from"]])
        except (KeyError, TypeError, AttributeError):
            raise _turn_error(turn) from None
    used = _used(roles)
    check_order([roles[index] for index in used])
    marks = sum(turns[index]["value"].count(PLACEHOLDER) for index in used if roles[index] == "user")
    if marks != len(images):
        check_marks(marks, len(images), "image")
    return max(1, num_words) if images else -max(1, num_words)


def _turn_error(turn: Any) -> DataError:
    """What is wrong with a turn: its shape, or who speaks."""
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        return DataError(f"a turn is {repr(turn)[:80]}", expected="{from: human | gpt | system, value: text}")
    return DataError(f"a turn from {turn.get('from')!r}", expected="human, gpt or system")


def _used(roles: list[Role]) -> list[int]:
    """The turns without answers that nobody asked for, which stand before the first human turn."""
    system = 1 if roles[0] == "system" else 0
    first = next((index for index in range(system, len(roles)) if roles[index] != "assistant"), len(roles))
    return [*range(system), *range(first, len(roles))]


def _turns(row: dict[str, Any], files: list[str]) -> tuple[Turn, ...]:
    media = iter([Medium(source=file) for file in files])
    turns = row["conversations"]
    roles: list[Role] = [_ROLES[turn["from"]] for turn in turns]
    made = []
    for index in _used(roles):
        role, value = roles[index], turns[index]["value"]
        said = (Text(text=value),) if value else ()
        made.append(Turn(role=role, parts=split_marks(value, media) if role == "user" else said))
    return tuple(made)


def _with_regions(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns with written boxes as regions of the picture before them; before the first picture there are none."""
    num_media = 0
    made = []
    for turn in turns:
        parts: list[Part] = []
        for part in turn.parts:
            num_media += isinstance(part, Medium)
            if isinstance(part, Text) and num_media:
                parts += split_boxes(part.text, num_media - 1, turn.role == "assistant")
            else:
                parts.append(part)
        made.append(Turn(role=turn.role, parts=tuple(parts)))
    return tuple(made)
