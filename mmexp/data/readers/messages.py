"""Chat messages as OpenAI, TRL and swift write them: `messages` of `role` and `content`."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmexp.contracts import Medium, Part, Region, Role, Sample, Text, Turn
from mmexp.data.readers.parts import (
    PLACEHOLDER,
    check_marks,
    check_order,
    others,
    picture,
    pictures_of,
    refuse_unread,
    system_of,
)  # fmt: skip
from mmexp.data.readers.regions import PixelRegion, as_share
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.errors import DataError

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_DATA_ADDRESS = re.compile(r"data:image/[\w.+-]+;base64,")
_MARKED_OBJECT = re.compile(r"(<ref-object>)?(<bbox>)?")
_WEIGHTS = ("loss", "weight")
"""What swift and OpenAI call the loss of one message; 0 and 1, or false and true."""
_OBJECT_MARKS = ("<ref-object>", "<bbox>")


@dataclass(frozen=True, kw_only=True)
class MessagesConfig(RowsConfig):
    """Rows of `messages`; a content is a text, or a list of `text`, `image` and `image_url` parts.

    Pictures stand in the parts, or in `images` (or `image`) with an `<image>` mark or an empty image part for each.
    An `image_url` may be a relative path or base64 data; addresses are refused. swift's `objects` fill the marks
    `<ref-object>` and `<bbox>`. A field `system` is the system turn. A turn's `loss` (swift) or `weight` (OpenAI) is
    accepted where it says what is done anyway: loss on every assistant turn.
    """

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages:
            raise DataError(f"`messages` is {repr(messages)[:60]}", expected="a list of {role, content}")
        refuse_unread(row, ("tools", "functions"))
        roles: list[Role] = [_role(message) for message in messages]
        check_order(roles, "user and assistant in turn")
        system = system_of(row, roles[0] == "system")
        given = pictures_of(row)
        named = [piece for message in messages for piece in _pieces(message)]
        marks = sum(piece is None for piece in named)
        check_marks(marks, len(given), "images")
        remaining, objects = iter(given), _Objects(row.get("objects"))
        turns = [Turn(role="system", parts=(Text(text=system),))] if system else []
        turns += [
            Turn(role=role, parts=tuple(_parts(message, remaining, objects)))
            for role, message in zip(roles, messages, strict=True)
        ]
        objects.settle(sum(isinstance(piece, Medium) or piece is None for piece in named))
        meta = others(row, "id", "messages", "images", "image", "objects", "system")
        return Sample(id=row_id(row, number), turns=tuple(turns), meta=meta)


def _role(message: Any) -> Role:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | list):
        raise DataError(f"a message is {repr(message)[:80]}", expected="{role: ..., content: text or a list of parts}")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        hint = "leave conversations with tools out" if role in ("tool", "function") else None
        raise DataError(f"a message of role {role!r}", expected="system, user or assistant", fix=hint)
    if called := next((key for key in ("tool_calls", "function_call") if message.get(key)), None):
        raise DataError(f"a message with `{called}`", expected="no tools", fix="leave the row out")
    for key in _WEIGHTS:
        weight = message.get(key)
        if weight is not None and not (isinstance(weight, int | float) and weight == (role == "assistant")):
            raise DataError(
                f"`{key}` is {weight!r} on a message of the {role}",
                expected="loss on every assistant turn and nowhere else",
                fix="leave the row out, or cut it behind the last turn that shall be learnt",
            )
    return _ROLES[role]


def _pieces(message: dict[str, Any]) -> Iterator[str | Medium | None]:
    """The content in reading order: text, a picture that is named here, or None for the next one of `images`."""
    content, is_user = message["content"], message["role"] == "user"
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            for number, text in enumerate(part["text"].split(PLACEHOLDER) if is_user else [part["text"]]):
                yield from ([None] if number else [])
                yield from ([text] if text else [])
        elif kind in ("image", "image_url") and is_user:
            yield _named(part, kind)
        else:
            expected = "a part of type text, image or image_url; pictures in user messages only"
            raise DataError(f"a part is {repr(part)[:80]}", expected=expected)


def _named(part: dict[str, Any], kind: str) -> Medium | None:
    keys = ("image_url",) if kind == "image_url" else ("image", "url", "path")
    given = [part[key] for key in keys if part.get(key) is not None]
    if len(given) > 1:
        raise DataError(f"a part is {repr(part)[:80]}", expected="one picture in a part")
    source = given[0] if given else None
    source = source.get("url") if isinstance(source, dict) else source
    if source is None and kind == "image":
        return None
    if isinstance(source, str) and (match := _DATA_ADDRESS.match(source)):
        try:
            return Medium(source=base64.b64decode(source[match.end() :], validate=True))
        except binascii.Error as error:
            raise DataError(f"the picture's base64 data is broken ({error})", expected="base64 text") from error
    return picture(source, kind)


def _parts(message: dict[str, Any], remaining: Iterator[Medium], objects: _Objects) -> Iterator[Part]:
    for piece in _pieces(message):
        if isinstance(piece, str):
            yield from objects.fill(piece)
        else:
            yield next(remaining) if piece is None else piece


class _Objects:
    """swift's `objects` of a row, given out in the order of their marks.

    Source: modelscope/ms-swift, custom dataset documentation (grounding).
    """

    def __init__(self, objects: Any) -> None:
        if objects is not None and not isinstance(objects, dict):
            raise DataError(f"`objects` is {repr(objects)[:60]}", expected="{ref, bbox, bbox_type, image_id}")
        self.active = bool(objects)
        objects = objects or {}
        self.refs, self.boxes = _list(objects, "ref", str), _list(objects, "bbox", list)
        self.owners = _list(objects, "image_id", int) or [0] * len(self.boxes)
        self.kind = objects.get("bbox_type") or "real"
        if self.kind not in ("real", "norm1"):
            raise DataError(f"`bbox_type` is {self.kind!r}", expected="real (pixels) or norm1 (0 to 1)")
        if len(self.owners) != len(self.boxes):
            raise DataError(f"{len(self.owners)} `image_id` for {len(self.boxes)} `bbox`", expected="one for each box")
        self.num_refs = self.num_boxes = 0
        self.highest = -1

    def fill(self, text: str) -> Iterator[Part]:
        """The text with phrases and boxes in place of their marks."""
        if not self.active or not any(mark in text for mark in _OBJECT_MARKS):
            yield Text(text=text)
            return
        position = 0
        for match in _MARKED_OBJECT.finditer(text):
            if not match.group():
                continue
            if match.start() > position:
                yield Text(text=text[position : match.start()])
            phrase = self._next_phrase() if match.group(1) else ""
            yield self._next_region(phrase) if match.group(2) else Text(text=phrase)
            position = match.end()
        if position < len(text):
            yield Text(text=text[position:])

    def settle(self, num_media: int) -> None:
        """Raises DataError when phrases or boxes are left over, or a box lies in a picture that is not there."""
        if (self.num_refs, self.num_boxes) != (len(self.refs), len(self.boxes)):
            found = f"{self.num_refs} <ref-object> and {self.num_boxes} <bbox> in the messages"
            raise DataError(found, expected=f"{len(self.refs)} and {len(self.boxes)}, as in `objects`")
        if self.num_boxes and not (min(self.owners) >= 0 and self.highest < num_media):
            wrong = self.highest if self.highest >= num_media else min(self.owners)
            raise DataError(f"a box in picture {wrong} of {num_media}", expected="an `image_id` of the row, from 0 on")

    def _next_phrase(self) -> str:
        if self.num_refs >= len(self.refs):
            raise DataError(f"more <ref-object> than the {len(self.refs)} `ref`", expected="one phrase for each mark")
        self.num_refs += 1
        return self.refs[self.num_refs - 1]

    def _next_region(self, phrase: str) -> Region:
        if self.num_boxes >= len(self.boxes):
            raise DataError(f"more <bbox> than the {len(self.boxes)} `bbox`", expected="one box for each mark")
        box, owner = self.boxes[self.num_boxes], self.owners[self.num_boxes]
        self.num_boxes += 1
        self.highest = max(self.highest, owner)
        if self.kind == "norm1":
            return Region(boxes=(as_share(box, 1, 1),), phrase=phrase, medium=owner)
        as_share(box, 10**9, 10**9)  # four numbers in order; the size of the picture is met when it is opened
        return PixelRegion(boxes=(tuple(box),), phrase=phrase, medium=owner)


def _list(objects: dict[str, Any], key: str, kind: type) -> list[Any]:
    """The list under a key, empty without one. Raises DataError when it is none, or holds anything else."""
    found = objects.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, kind) and not isinstance(one, bool) for one in found):
        expected = {str: "a list of texts", int: "a list of whole numbers"}.get(kind, "a list of boxes")
        raise DataError(f"`{key}` of `objects` is {repr(found)[:60]}", expected=expected)
    return found
