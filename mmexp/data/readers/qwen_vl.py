"""Qwen-VL's JSON layout: pictures, phrases and boxes written into the text of the turns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmexp.contracts import Medium, Part, Region, Role, Sample, Text, Turn
from mmexp.data.readers.parts import check_order, others, picture, refuse_unread
from mmexp.data.readers.regions import as_share
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.errors import DataError

_ROLES: dict[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "human": "user",
    "gpt": "assistant",
}
_BOX = r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>"
_PIECE = re.compile(
    rf"(?:Picture (?P<number>\d+): ?)?<img>(?P<image>.*?)</img>\n?"
    rf"|(?:<ref>(?P<phrase>.*?)</ref>)?(?P<boxes>(?:{_BOX})+)"
    rf"|<ref>(?P<bare>.*?)</ref>",
    re.DOTALL,
)
_LEFT_OVER = re.compile(r"</?(?:img|box|ref|quad)>")
_GRID = 1000


@dataclass(frozen=True, kw_only=True)
class QwenVlJsonConfig(RowsConfig):
    """Rows whose text holds `Picture 1: <img>PATH</img>` and `<ref>words</ref><box>(x1,y1),(x2,y2)</box>`.

    Boxes lie on a grid of 1000 by 1000. They become regions of the picture before them, and the words around a
    picture (`Picture 1: ` and the line break behind it) are left to the template.

    Source: QwenLM/Qwen-VL, README (fine-tuning) and `tokenization_qwen.py` (`from_list_format`).
    """

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        turns = row.get("conversations")
        if not isinstance(turns, list) or not turns:
            raise DataError(f"`conversations` is {repr(turns)[:60]}", expected="a list of {from, value} turns")
        refuse_unread(row, ("image", "images"))
        made: list[Turn] = []
        num_media = 0
        for turn in turns:
            if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
                raise DataError(f"a turn is {repr(turn)[:80]}", expected="{from: user | assistant, value: text}")
            if not isinstance(turn.get("from"), str) or turn["from"] not in _ROLES:
                raise DataError(f"a turn from {turn.get('from')!r}", expected="user, assistant or system")
            role = _ROLES[turn["from"]]
            parts = tuple(_parts(turn["value"], num_media, role))
            num_media += sum(isinstance(part, Medium) for part in parts)
            made.append(Turn(role=role, parts=parts))
        check_order([turn.role for turn in made], "user and assistant in turn")
        return Sample(id=row_id(row, number), turns=tuple(made), meta=others(row, "id", "conversations"))


def _parts(text: str, num_media: int, role: Role) -> Iterator[Part]:
    position = 0
    for match in _PIECE.finditer(text):
        yield from _plain(text[position : match.start()])
        position = match.end()
        if match["image"] is not None:
            if role != "user":
                raise DataError(f"a picture in a turn of the {role}", expected="pictures in user turns only")
            num_media += 1
            if match["number"] and int(match["number"]) != num_media:
                raise DataError(
                    f"`Picture {match['number']}` is picture {num_media}", expected="numbers in reading order"
                )
            yield picture(match["image"].strip(), "<img>")
        elif match["boxes"]:
            if not num_media:
                raise DataError(f"{match.group()[:60]!r} before any picture", expected="a picture to point at")
            boxes = tuple(
                as_share([int(side) for side in box], _GRID, _GRID) for box in re.findall(_BOX, match["boxes"])
            )
            yield Region(boxes=boxes, phrase=match["phrase"] or "", medium=num_media - 1)
        else:
            yield from _plain(match["bare"])
    yield from _plain(text[position:])


def _plain(text: str) -> Iterator[Text]:
    if found := _LEFT_OVER.search(text):
        near = text[max(0, found.start() - 20) : found.end() + 30]
        expected = "<img>PATH</img>, <ref>words</ref>, <box>(x1,y1),(x2,y2)</box> with whole numbers to 1000"
        raise DataError(f"{found.group()} in {near!r}", expected=expected, fix="mend the text; <quad> is not supported")
    if text:
        yield Text(text=text)
