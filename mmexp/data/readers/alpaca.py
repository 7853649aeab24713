"""Instruction rows: Alpaca's `instruction`, `input`, `output`, and `query`, `response`; both with `history`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmexp.contracts import Role, Sample, Text, Turn
from mmexp.data.readers.parts import (
    PLACEHOLDER,
    check_marks,
    others,
    pictures_of,
    refuse_unread,
    split_marks,
    system_of,
    words,
)
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.errors import DataError

_OWN = ("id", "instruction", "input", "output", "query", "response", "history", "system", "images", "image")


@dataclass(frozen=True, kw_only=True)
class InstructionsConfig(RowsConfig):
    """Rows of one exchange, with earlier ones in `history` ([question, answer] pairs) and pictures in `images`.

    `input` follows `instruction` on a line of its own, as in LLaMA-Factory.
    """

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        refuse_unread(row)
        if "instruction" in row:
            extra = row.get("input")
            question, answer = words(row, "instruction"), words(row, "output")
            question += "\n" + extra if isinstance(extra, str) and extra else ""
        else:
            question, answer = words(row, "query"), words(row, "response")
        pairs = [*_history(row.get("history")), (question, answer)]
        media = pictures_of(row)
        check_marks(sum(asked.count(PLACEHOLDER) for asked, _ in pairs), len(media), "images")
        remaining, turns = iter(media), []
        if system := system_of(row, is_said=False):
            turns.append(Turn(role="system", parts=(Text(text=system),)))
        for asked, said in pairs:
            turns += [_turn("user", split_marks(asked, remaining)), _turn("assistant", (Text(text=said),))]
        return Sample(id=row_id(row, number), turns=tuple(turns), meta=others(row, *_OWN))


def _turn(role: Role, parts: Any) -> Turn:
    return Turn(role=role, parts=parts)


def _history(value: Any) -> list[tuple[str, str]]:
    pairs = value or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    ):
        raise DataError(f"`history` is {repr(value)[:60]}", expected="a list of [question, answer]")
    return [(asked, said) for asked, said in pairs]
