"""The rows of annotation files and where they stand: strict JSON, every mistake named with its file and line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmexp.data.files import SteadyFile
from mmexp.data.jsontext import JsonText, decode, not_utf8
from mmexp.errors import DataError


class Row(NamedTuple):
    """One value of a file, and where it stands."""

    line: int
    start: int
    """First byte; of the key where the row is a member of an object."""
    end: int
    value: Any
    key: str | None = None


def iterate_rows(file: SteadyFile) -> Iterator[Row]:
    """The rows of a JSON list or of JSON lines.

    The format is told by content: a file that begins with `[` is a list, one that begins with `{` has one row a line.

    Raises:
        DataError: broken JSON, a duplicate key, NaN or infinity, a lone surrogate, not UTF-8, another top-level type.
    """
    text = JsonText(file)
    first = text.peek()
    if first == "[":
        yield from _elements(text)
        text.expect_end("the list")
    elif first == "{":
        yield from _lines(file)
    else:
        found = "an empty file" if not first else f"the file begins with {text.ahead()!r}"
        raise DataError(found, expected="a list of rows, or one row a line (JSONL)", where=file.path)


def iterate_under(file: SteadyFile, key: str) -> Iterator[Row]:
    """The elements of the list that stands under `key` in the file's one object; other members are passed over.

    Raises:
        DataError: as `iterate_rows`; no such key, or no list there.
    """
    text, seen, found = JsonText(file), [], False
    for name, _ in _keys(text):
        seen.append(name)
        rows = _elements(text) if text.peek() == "[" else None
        if name != key:
            _pass_over(text, rows)
            continue
        if rows is None:
            raise DataError(
                f"`{key}` is {text.ahead()!r}...", expected="a list of rows", where=f"{file.path}:{text.line}"
            )
        found = True
        yield from rows
    text.expect_end("the object")
    if not found:
        raise DataError(f"an object with {', '.join(seen) or 'nothing'}", expected=f"`{key}`, a list", where=file.path)


def iterate_members(file: SteadyFile) -> Iterator[Row]:
    """The members of the file's one object as rows that have a key.

    Raises:
        DataError: as `iterate_rows`.
    """
    text = JsonText(file)
    for key, (line, start) in _keys(text):
        value = text.value()
        yield Row(line, start, text.place()[1], value, key)
    text.expect_end("the object")


def outline(file: SteadyFile, max_keys: int = 16) -> Iterator[tuple[str, Any]]:
    """The first keys of the file's one object, each with its value, or with its first element where it holds a list."""
    text = JsonText(file)
    for number, (key, _) in enumerate(_keys(text)):
        if number == max_keys:
            return
        if text.peek() == "[":
            rows = _elements(text)
            yield key, [row.value for row in (next(rows, None),) if row]
            _pass_over(text, rows)
        else:
            yield key, text.value()


def _pass_over(text: JsonText, rows: Iterator[Row] | None) -> None:
    if rows is None:
        text.value()
    else:
        for _ in rows:
            pass


def _elements(text: JsonText) -> Iterator[Row]:
    """The elements of the list that begins here; the text is behind it afterwards."""
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        text.peek()
        line, start = text.place()
        value = text.value()
        yield Row(line, start, text.place()[1], value)
        if text.take(",]", "a comma or ] after a row") == "]":
            return


def _keys(text: JsonText) -> Iterator[tuple[str, tuple[int, int]]]:
    """The keys of the object that begins here, with line and byte; whoever asks for the next one has read the value."""
    if text.peek() != "{":
        found = "an empty file" if not text.peek() else f"the file begins with {text.ahead()!r}"
        raise DataError(found, expected="one object", where=text.path)
    text.take("{")
    seen: set[str] = set()
    while text.peek() != "}" or seen:
        text.peek()
        place = text.place()
        key = text.value()
        if not isinstance(key, str) or key in seen:
            found = f"the key {key!r} twice in one object" if isinstance(key, str) else f"{key!r} as a key"
            raise DataError(found, expected="plain JSON", where=f"{text.path}:{place[0]}")
        seen.add(key)
        text.take(":", "a colon after a key")
        text.peek()
        yield key, place
        if text.take(",}", "a comma or } after a value") == "}":
            return
    text.take("}")


def _lines(file: SteadyFile) -> Iterator[Row]:
    start = 0
    with open(file.path, "rb") as lines:
        for number, raw in enumerate(lines, 1):
            bom = 3 if number == 1 and raw.startswith(b"\xef\xbb\xbf") else 0
            if text := _utf8(raw[bom:], file.path, start + bom).strip(" \t\r\n"):
                value, end = decode(text, 0, file.path, number)
                if text[end:].strip():
                    hint = "a file that begins with { must hold one whole row on every line, or be a list in [ ]"
                    where = f"{file.path}:{number}"
                    raise DataError(f"{text[end : end + 20]!r} after the row", where=where, expected=hint)
                yield Row(number, start + bom, start + len(raw), value)
            start += len(raw)


def _utf8(raw: bytes, path: str, start: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(path, start + error.start) from error


def as_file(path: str | Path, what: str = "the annotation file") -> SteadyFile:
    """The file at a path that may begin with `~`."""
    return SteadyFile(Path(path).expanduser(), what)
