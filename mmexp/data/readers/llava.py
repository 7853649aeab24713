"""LLaVA's JSON layout: rows with `id`, `image` and `conversations`, as everybody adopted it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmexp.contracts import Dataset, Medium, Part, Preparable, Role, Sample, Text, Turn
from mmexp.data.sources import FrozenRows, PackedRows, iterate_rows, read_text
from mmexp.errors import DataError

PLACEHOLDER = "<image>"
_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"
}  # fmt: skip
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_OWN_FIELDS = ("id", "image", "conversations")
_SHOWN_ERRORS = 5


@dataclass(frozen=True, kw_only=True)
class LlavaJsonConfig:
    """A JSON list or JSONL file of LLaVA rows.

    `image` is a path, a list of paths, or absent; `<image>` in a human turn marks where a picture stands, and there
    must be as many marks as pictures. In answers `<image>` is plain text. Answers before the first human turn are
    skipped, as LLaVA's own preprocessing does. Every other field of a row goes to `Sample.meta`.
    """

    path: str
    image_root: str | None = None
    """Folder that image paths are relative to and must stay under; null for the folder of the file. Where paths begin
    with the name of that very folder (`images/1.jpg` and `.../images`), it counts once."""
    name: str | None = None
    """Name in messages and counts; null for the file's name."""
    prepare: Preparable | None = None
    """Makes the files exist before they are read."""
    limit: int | None = None
    """Only the first so many rows."""

    def build(self) -> Dataset:
        """Reads and checks every row.

        Raises:
            DataError: the file is missing or broken, or rows are not as described (the first ones are listed).
        """
        if self.prepare is not None:
            self.prepare.prepare()
        path = Path(self.path).expanduser().absolute()
        root = Path(self.image_root).expanduser() if self.image_root else path.parent
        return LlavaJson(_read(path, self.limit), path, root, self.name or path.stem)


class LlavaJson(Dataset):
    """Samples of one LLaVA file; rows stay packed until asked for.

    Args:
        rows: Checked rows.
        path: The file, for messages.
        image_root: Folder of the pictures.
        name: `Sample.dataset`.
    """

    def __init__(self, rows: FrozenRows, path: Path, image_root: Path, name: str) -> None:
        self._rows, self._path, self.name = rows, path, name
        self._root = os.path.realpath(image_root)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        index = index % len(self)
        where = f"{self._path}: row {index} (id {_row_id(row, index)!r})"
        files = [self._resolve(image, where) for image in _images(row)]
        return Sample(
            id=_row_id(row, index),
            dataset=self.name,
            turns=_turns(row, files),
            meta={key: value for key, value in row.items() if key not in _OWN_FIELDS},
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all rows: two data sets with the same one train the same."""
        return hashlib.sha256(self._rows.data).hexdigest()

    def _resolve(self, image: str, where: str) -> str:
        """The absolute file of a picture. Raises DataError when links lead out of the root."""
        first, _, rest = image.partition("/")
        file = os.path.join(self._root, image)
        if rest and first == os.path.basename(self._root) and not os.path.exists(file):
            file = os.path.join(self._root, rest)
        real = os.path.realpath(file)
        if os.path.commonpath((self._root, real)) != self._root:
            raise DataError(
                f"the image path {image!r} leads outside of the image folder",
                expected=f"a file under {self._root}",
                where=where,
                fix="set data.image_root to a folder that holds all pictures",
            )
        return file


def _read(path: Path, limit: int | None) -> FrozenRows:
    """All rows of the file, each one checked."""
    rows, errors, number = PackedRows(), [], 0
    for number, (line, raw, value) in enumerate(iterate_rows(read_text(path, "the annotation file"), path)):
        if limit is not None and number >= limit:
            break
        try:
            _check_row(value, number)
        except DataError as error:
            row_id = _row_id(value, number) if isinstance(value, dict) else None
            where = f"{path}: row {number} (line {line}, id {row_id!r})"
            errors.append(DataError(error.found, expected=error.expected, where=where, fix=error.fix))
        rows.append(raw)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        shown = "\n".join(error.render() for error in errors[:_SHOWN_ERRORS])
        more = f"\n... and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
        raise DataError(f"{len(errors)} of {len(rows.ends)} rows cannot be used\n{shown}{more}", where=str(path))
    if not rows.ends:
        raise DataError("no row", expected="at least one conversation", where=str(path))
    return rows.freeze()


def _row_id(row: dict[str, Any], number: int) -> str:
    found = row.get("id")
    return f"row-{number}" if found is None else str(found)


def _images(row: dict[str, Any]) -> list[str]:
    found = row.get("image")
    return [] if found is None else [found] if isinstance(found, str) else found


def _check_row(row: Any, number: int) -> None:
    """Raises DataError (without a place) when a row is not as `LlavaJsonConfig` describes it."""
    if not isinstance(row, dict):
        raise DataError(f"a row of type {type(row).__name__}", expected="an object with `conversations`")
    images = _images(row)
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise DataError(f"`image` is {row['image']!r}", expected="a path or a list of paths")
    for image in images:
        _check_path(image)
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        found = "missing" if "conversations" not in row else repr(turns)[:60]
        raise DataError(f"`conversations` is {found}", expected="a list of {from, value} turns")
    for turn in turns:
        _check_turn(turn)
    _check_order(turns)
    marks = sum(turn["value"].count(PLACEHOLDER) for turn in _used(turns) if _ROLES[turn["from"]] == "user")
    if marks != len(images):
        raise DataError(
            f"{marks} {PLACEHOLDER} in the human turns and {len(images)} in `image`",
            expected="as many marks as pictures",
            fix=f"put {PLACEHOLDER} where each picture belongs" if marks < len(images) else "name the missing pictures",
        )


def _check_path(image: str) -> None:
    parts = Path(image).parts
    reason = (
        "is empty" if not image
        else "holds a NUL character" if "\0" in image
        else "is absolute" if os.path.isabs(image)
        else "is an address, not a path" if _SCHEME.match(image)
        else "leaves the image folder with .." if ".." in parts
        else None
    )  # fmt: skip
    if reason:
        raise DataError(f"the image path {image!r} {reason}", expected="a path relative to the image folder",
                        fix="set data.image_root, and store relative paths")  # fmt: skip


def _check_turn(turn: Any) -> None:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise DataError(f"a turn is {repr(turn)[:80]}", expected="{from: human | gpt | system, value: text}")
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise DataError(f"a turn from {speaker!r}", expected="human, gpt or system")


def _used(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns without answers that nobody asked for, which stand before the first human turn."""
    system = turns[:1] if _ROLES[turns[0]["from"]] == "system" else []
    rest = turns[len(system) :]
    first = next((index for index, turn in enumerate(rest) if _ROLES[turn["from"]] != "assistant"), len(rest))
    return system + rest[first:]


def _check_order(turns: list[dict[str, str]]) -> None:
    roles = [_ROLES[turn["from"]] for turn in _used(turns)]
    body = roles[1:] if roles[:1] == ["system"] else roles
    if not body:
        raise DataError("no human turn", expected="human and gpt in turn")
    for index, role in enumerate(body):
        if role != ("user", "assistant")[index % 2]:
            raise DataError(
                f"turn {index + 1} of the conversation is from the {role}",
                expected="human and gpt in turn, system only at the front",
                fix="merge neighbouring turns of one speaker",
            )


def _turns(row: dict[str, Any], files: list[str]) -> tuple[Turn, ...]:
    remaining = iter(files)
    turns = []
    for turn in _used(row["conversations"]):
        role, value = _ROLES[turn["from"]], turn["value"]
        parts: list[Part] = []
        for number, text in enumerate(value.split(PLACEHOLDER) if role == "user" else [value]):
            parts += [Medium(source=next(remaining))] if number else []
            parts += [Text(text=text)] if text else []
        turns.append(Turn(role=role, parts=tuple(parts)))
    return tuple(turns)
