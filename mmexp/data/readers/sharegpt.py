"""ShareGPT's layout as LLaMA-Factory reads it: `conversations`, `system`, `images`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmexp.contracts import Medium, Role, Sample, Text, Turn
from mmexp.data.readers.parts import (
    PLACEHOLDER,
    check_marks,
    check_order,
    others,
    pictures_of,
    refuse_unread,
    split_marks,
    system_of,
)
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.errors import DataError

_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "observation": "user", "function_call": "assistant",
}  # fmt: skip
_TOOL_SPEAKERS = ("observation", "function_call")


@dataclass(frozen=True, kw_only=True)
class ShareGptConfig(RowsConfig):
    """Rows of `conversations` with `images` beside them, one `<image>` mark for each.

    The field `system` is the system turn. Rows with tools, videos or sounds are refused unless stated otherwise.
    """

    tools: Literal["refuse", "as_text"] = "refuse"
    """`as_text` takes `observation` as said by the user, `function_call` as said by the assistant, and leaves the
    `tools` description in `Sample.meta`."""

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        turns = row.get("conversations")
        if not isinstance(turns, list) or not turns:
            raise DataError(f"`conversations` is {repr(turns)[:60]}", expected="a list of {from, value} turns")
        refuse_unread(row)
        if row.get("tools") and self.tools == "refuse":
            raise _tool_error("`tools`")
        said = [self._speaker(turn) for turn in turns]
        if system := system_of(row, said[0][0] == "system"):
            said.insert(0, ("system", system))
        check_order([role for role, _ in said])
        media = pictures_of(row)
        check_marks(sum(text.count(PLACEHOLDER) for role, text in said if role == "user"), len(media), "images")
        own = ("id", "conversations", "images", "image", "system")
        return Sample(id=row_id(row, number), turns=_turns(said, media), meta=others(row, *own))

    def _speaker(self, turn: Any) -> tuple[Role, str]:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise DataError(f"a turn is {repr(turn)[:80]}", expected="{from: human | gpt | system, value: text}")
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in _ROLES:
            raise DataError(f"a turn from {speaker!r}", expected="human, gpt, system, observation or function_call")
        if speaker in _TOOL_SPEAKERS and self.tools == "refuse":
            raise _tool_error(f"a turn from {speaker!r}")
        return _ROLES[speaker], turn["value"]


def _turns(said: list[tuple[Role, str]], media: list[Medium]) -> tuple[Turn, ...]:
    remaining = iter(media)
    return tuple(
        Turn(role=role, parts=split_marks(text, remaining) if role == "user" else said_text(text))
        for role, text in said
    )


def said_text(text: str) -> tuple[Text, ...]:
    """A text as parts; an empty one has none."""
    return (Text(text=text),) if text else ()


def _tool_error(found: str) -> DataError:
    return DataError(
        f"{found}: a conversation with tools", expected="no tools", fix="leave the row out, or set data.tools=as_text"
    )
