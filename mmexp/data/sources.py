"""Annotation files as rows of bytes: strict JSON, every mistake named with its file and line."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmexp.errors import DataError

_GAP = re.compile(r"[ \t\r\n]*")


@dataclass
class PackedRows:
    """Rows of JSON in one block of bytes with offsets, so that workers share memory instead of copying dicts."""

    data: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=list)

    def append(self, row: str) -> None:
        """Adds the JSON text of one row."""
        self.data += row.encode()
        self.ends.append(len(self.data))

    def freeze(self) -> FrozenRows:
        """The rows for reading, offsets as an array."""
        import numpy as np

        return FrozenRows(bytes(self.data), np.asarray([0, *self.ends], dtype=np.int64))


@dataclass(frozen=True)
class FrozenRows:
    """Random access to packed rows."""

    data: bytes
    offsets: Any  # numpy int64[rows + 1]; numpy is not imported for its name alone

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return json.loads(self.data[int(self.offsets[index]) : int(self.offsets[index + 1])])


def read_text(path: Path, what: str) -> str:
    """The file as text; a byte order mark is accepted.

    Raises:
        DataError: missing (with the nearest existing names), a folder, unreadable, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start} is not UTF-8", expected="UTF-8 text", where=str(path), fix="convert the file to UTF-8"
        ) from error
    except FileNotFoundError as error:
        raise DataError(
            f"{what} does not exist", expected="a JSON or JSONL file", where=str(path), fix=_near(path)
        ) from error
    except OSError as error:
        raise DataError(f"{what} cannot be read ({error.strerror})", where=str(path)) from error


def iterate_rows(text: str, path: Path) -> Iterator[tuple[int, str, Any]]:
    """The rows of a JSON list or of JSON lines, as line number, JSON text and value.

    The format is told by content: a file that begins with `[` is a list, one that begins with `{` has one row a line.

    Raises:
        DataError: broken JSON, a duplicate key, NaN or infinity, a lone surrogate, another top-level type.
    """
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        yield from _iterate_list(text, start + 1, path)
    elif text[start : start + 1] == "{":
        yield from _iterate_lines(text, path)
    else:
        found = "an empty file" if start == len(text) else f"the file begins with {text[start : start + 20]!r}"
        raise DataError(found, expected="a list of rows, or one row a line (JSONL)", where=str(path))


def _iterate_lines(text: str, path: Path) -> Iterator[tuple[int, str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        value, end = _decode(line, _skip(line, 0), path, number - 1)
        if line[end:].strip():
            hint = "a file that begins with { must hold one whole row on every line, or be a list in [ ]"
            raise DataError(f"{line[end : end + 20]!r} after the row", where=f"{path}:{number}", expected=hint)
        yield number, line.strip(), value


def _iterate_list(text: str, position: int, path: Path) -> Iterator[tuple[int, str, Any]]:
    lines, counted = 0, 0
    position = _skip(text, position)
    while text[position : position + 1] != "]":
        lines, counted = lines + text.count("\n", counted, position), position
        value, end = _decode(text, position, path, lines)
        yield lines + 1, text[position:end], value
        position = _skip(text, end)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            found = repr(text[position : position + 20]) if position < len(text) else "the file ends inside the list"
            line = text.count("\n", 0, position) + 1
            raise DataError(found, expected="a comma or ] after a row", where=f"{path}:{line}")
    rest = text[position + 1 :].strip()
    if rest:
        line = text.count("\n", 0, position) + 1
        raise DataError(f"{rest[:20]!r} after the list", expected="nothing", where=f"{path}:{line}")


def _skip(text: str, position: int) -> int:
    gap = _GAP.match(text, position)
    return gap.end() if gap else position


class _RejectedError(ValueError):
    """A value that JSON parsers accept and we do not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RejectedError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice in one object")
    return result


def _no_constant(name: str) -> None:
    raise _RejectedError(f"{name}, which is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _decode(text: str, position: int, path: Path, lines: int) -> tuple[Any, int]:
    """One value at `position`; `lines` are the lines before this text's row."""
    try:
        value, end = _DECODER.raw_decode(text, position)
        _check_surrogates(text[position:end], value)
        return value, end
    except json.JSONDecodeError as error:
        line = lines + text.count("\n", position if position <= error.pos else 0, error.pos) + 1
        found = f"broken JSON: {error.msg} at {text[error.pos : error.pos + 20]!r}" if error.pos < len(text) else (
            "broken JSON: the file ends inside a row"
        )  # fmt: skip
        raise DataError(found, expected="valid JSON", where=f"{path}:{line}", fix="is the file complete?") from error
    except (_RejectedError, RecursionError) as error:
        raise DataError(str(error), expected="plain JSON", where=f"{path}:{lines + 1} (row begins here)") from error


def _check_surrogates(raw: str, value: Any) -> None:
    if "\\ud" in raw or "\\uD" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _RejectedError("half of a surrogate pair (broken emoji)") from error


def _near(path: Path) -> str:
    """What exists near a missing file."""
    folder = path.parent
    if not folder.is_dir():
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return f"the folder {path.parent} does not exist either; the nearest one that does is {folder}"
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".json", ".jsonl"))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.3) or names[:5]
    return f"one of the files there: {', '.join(near)}" if near else f"{folder} holds no .json or .jsonl file"
