"""The pieces of turns that formats share: image paths, marks in a text, the order of speakers, questions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmexp.contracts import Medium, Part, Role, Text, Turn
from mmexp.errors import ConfigError, DataError

PLACEHOLDER = "<image>"
_NO_MEDIA, _NO_PAIRS = "pictures and text only", "one answer to learn, not pairs to compare"
_UNREAD = {
    **dict.fromkeys(("videos", "video", "audios", "audio"), _NO_MEDIA),
    **dict.fromkeys(("chosen", "rejected", "rejected_response"), _NO_PAIRS),
}
"""Fields of conversations that cannot be passed over, and what is expected instead."""
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_/ ,=()-]*(?:\.[A-Za-z0-9_/ ,=()-]+)*")


def picture(path: Any, key: str = "image") -> Medium:
    """A picture by its path in a row. Raises DataError when that is no path below the image folder."""
    if not isinstance(path, str):
        raise DataError(f"`{key}` is {repr(path)[:80]}", expected="a path")
    check_path(path)
    return Medium(source=path)


def pictures(value: Any, key: str) -> list[Medium]:
    """Pictures by a path, a list of paths, or nothing. Raises DataError as `picture`."""
    if value is None:
        return []
    if isinstance(value, list) and all(isinstance(path, str) for path in value):
        return [picture(path, key) for path in value]
    if not isinstance(value, str):
        raise DataError(f"`{key}` is {repr(value)[:80]}", expected="a path or a list of paths")
    return [picture(value, key)]


def pictures_of(row: dict[str, Any]) -> list[Medium]:
    """Pictures of a row under `images` or `image`. Raises DataError when both are given, or as `pictures`."""
    plural, single = row.get("images"), row.get("image")
    if plural and single and plural not in (single, [single]):
        found = f"`images` is {repr(plural)[:60]} and `image` is {repr(single)[:60]}"
        raise DataError(found, expected="one of them", fix="put all pictures into `images`")
    return pictures(plural, "images") if plural is not None or single is None else pictures(single, "image")


def system_of(row: dict[str, Any], is_said: bool) -> str:
    """The text of the field `system`, empty without one.

    Args:
        row: Of conversations that may begin with a system turn of their own.
        is_said: Whether they do.

    Raises:
        DataError: it is no text, or there are two.
    """
    found = row.get("system")
    if found is None or found == "":
        return ""
    if not isinstance(found, str):
        raise DataError(f"`system` is {repr(found)[:60]}", expected="a text")
    if is_said:
        raise DataError("a field `system` and a system turn", expected="one of them", fix="join the two texts")
    return found


def refuse_unread(row: dict[str, Any], more: Iterable[str] = ()) -> None:
    """Raises DataError for a row with media or answers that no reader takes, so that they cannot be lost.

    Args:
        row: Of conversations.
        more: Further fields that this format does not read.
    """
    for key in sorted(row.keys() & {*_UNREAD, *more}):
        if row[key]:
            expected = _UNREAD.get(key, "a field that this format has")
            raise DataError(f"`{key}` is {repr(row[key])[:60]}", expected=expected, fix="leave such rows out")


def check_limit(limit: int | None) -> None:
    """Raises ConfigError for a number of rows below 1."""
    if limit is not None and limit < 1:
        raise ConfigError(f"{limit}", expected="at least 1, or null for all rows", where="data.limit")


def check_path(image: str) -> None:
    """Raises DataError for a path that is empty, absolute, an address, or leaves its folder."""
    if _PLAIN_PATH.fullmatch(image):  # nearly every path; the reasons below cannot apply
        return
    reason = (
        "is empty" if not image
        else "holds a NUL character" if "\0" in image
        else "is absolute" if os.path.isabs(image)
        else "is an address, not a path" if _SCHEME.match(image)
        else "leaves the image folder with .." if ".." in Path(image).parts
        else None
    )  # fmt: skip
    if reason:
        raise DataError(f"the image path {image!r} {reason}", expected="a path relative to the image folder",
                        fix="set data.image_root, and store relative paths")  # fmt: skip


def inside(image: str, root: str, where: str) -> str:
    """The absolute file of a picture; a path that begins with the name of the root counts that folder once.

    Raises:
        DataError: links lead out of the root.
    """
    file = os.path.join(root, image)
    first, _, rest = image.partition("/")
    if rest and first == os.path.basename(root) and not os.path.exists(file):
        file = os.path.join(root, rest)
    real = os.path.realpath(file)
    if os.path.commonpath((root, real)) != root:
        raise DataError(
            f"the image path {image!r} leads outside of the image folder",
            expected=f"a file under {root}",
            where=where,
            fix="set data.image_root to a folder that holds all pictures",
        )
    return file


def split_marks(text: str, media: Iterator[Medium]) -> tuple[Part, ...]:
    """A text with a picture from `media` at each mark."""
    parts: list[Part] = []
    for number, piece in enumerate(text.split(PLACEHOLDER)):
        parts += [next(media)] if number else []
        parts += [Text(text=piece)] if piece else []
    return tuple(parts)


def check_marks(marks: int, media: int, key: str) -> None:
    """Raises DataError when there are more marks than pictures, or fewer."""
    if marks != media:
        raise DataError(
            f"{marks} {PLACEHOLDER} in the human turns and {media} in `{key}`",
            expected="as many marks as pictures",
            fix=f"put {PLACEHOLDER} where each picture belongs" if marks < media else "name the missing pictures",
        )


def check_order(roles: Sequence[Role], expected: str = "human and gpt in turn") -> None:
    """Raises DataError unless user and assistant speak in turn, after at most one system turn."""
    body = roles[1:] if roles[:1] == ["system"] else roles
    if not body:
        raise DataError("no human turn", expected=expected)
    for index, role in enumerate(body):
        if role != ("user", "assistant")[index % 2]:
            raise DataError(
                f"turn {index + 1} of the conversation is from the {role}",
                expected=f"{expected}, system only at the front",
                fix="merge neighbouring turns of one speaker",
            )


def words(row: dict[str, Any], key: str) -> str:
    """The text under a key. Raises DataError when it is no text, or nothing but white space."""
    found = row.get(key)
    if not isinstance(found, str) or not found.strip():
        shown = "missing" if key not in row else "empty" if isinstance(found, str) else repr(found)[:60]
        raise DataError(f"`{key}` is {shown}", expected="a text", fix="remove the row, or add the text")
    return found


def exchange(question: str | tuple[Part, ...], answer: str | tuple[Part, ...], *media: Medium) -> tuple[Turn, ...]:
    """One question with its pictures in front, and its answer.

    A line break follows the pictures, as in LLaVA's data.
    """
    asked = (Text(text="\n" + question if media else question),) if isinstance(question, str) else question
    said = (Text(text=answer),) if isinstance(answer, str) else answer
    return Turn(role="user", parts=(*media, *asked)), Turn(role="assistant", parts=said)


def is_key(value: Any) -> bool:
    """Whether a value can name something: a number or a text, as ids are."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def others(row: dict[str, Any], *own: str) -> dict[str, Any]:
    """Every field of the row but those that became turns."""
    return {key: value for key, value in row.items() if key not in own}
