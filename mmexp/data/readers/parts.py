"""The pieces of turns that formats share: image paths, marks in a text, the order of speakers, boxes, questions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmexp.contracts import Box, Medium, Part, Region, Role, Text, Turn
from mmexp.errors import DataError

PLACEHOLDER = "<image>"
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


def as_share(box: Any, width: Any, height: Any, form: str = "xyxy") -> Box:
    """A pixel box as shares of its picture; what sticks out by rounding is cut.

    Args:
        box: Four numbers.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        form: `xyxy` for corners, `xywh` for corner and size.

    Raises:
        DataError: no four numbers, an empty box, or one that lies outside of the picture by more than a pixel.
    """
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(_is_number(side) for side in box):
        raise DataError(f"a box is {repr(box)[:60]}", expected="four numbers")
    if not (_is_number(width) and _is_number(height) and width > 0 and height > 0):
        raise DataError(f"a picture of {width!r} x {height!r}", expected="`width` and `height` in pixels")
    left, top, right, bottom = box if form == "xyxy" else (box[0], box[1], box[0] + box[2], box[1] + box[3])
    slack = 1.0 if max(width, height) > 1 else 1e-3
    fits = -slack <= left < right <= width + slack and -slack <= top < bottom <= height + slack
    if not fits:
        raise DataError(
            f"the box {list(box)} in a picture of {width} x {height}",
            expected="left < right and top < bottom, inside of the picture",
            fix=f"are the boxes really {form}, and of this picture size?",
        )
    shares = (left / width, top / height, right / width, bottom / height)
    return tuple(min(1.0, max(0.0, share)) for share in shares)  # type: ignore[return-value]  # four of them


@dataclass(frozen=True, kw_only=True)
class PixelRegion(Region):
    """Boxes in pixels of a picture whose size is not known before it is opened."""

    def as_shares(self, source: Any, where: str) -> Region:
        """The same boxes as shares, by the upright size of the picture.

        Raises:
            DataError: the picture cannot be opened, or a box lies outside of it.
        """
        width, height = _upright_size(source, where)
        try:
            boxes = tuple(as_share(box, width, height) for box in self.boxes)
        except DataError as error:
            raise DataError(error.found, expected=error.expected, where=where, fix=error.fix) from error
        return Region(boxes=boxes, phrase=self.phrase, medium=self.medium)


def _upright_size(source: Any, where: str) -> tuple[int, int]:
    """Width and height from the header, turned as EXIF says."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            return (image.height, image.width) if turned else image.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the size of the picture cannot be read ({error})", where=where) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
