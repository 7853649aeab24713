"""Strict JSON read piece by piece, so that a file of any size needs only the memory of one piece."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, NoReturn

from mmexp.data.files import SteadyFile
from mmexp.errors import DataError

_CHUNK_BYTES = 1 << 22
_GAP = re.compile(r"[ \t\r\n]*")
_LONGEST_ATOM = 16
"""An error so near to the end of a piece may come from the cut: no literal or escape is longer."""


class JsonText:
    """The text of a file as a window that moves forward; `position` never goes back.

    Args:
        file: What to read.
    """

    def __init__(self, file: SteadyFile) -> None:
        self.path = file.path
        self._chunks = file.chunks(size=_CHUNK_BYTES)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._buffer, self._position, self._ended = "", 0, False
        self._bytes_read = 0
        self._counted, self._byte, self._line = 0, 0, 1  # byte and line of the character `counted` of the buffer
        self._more()
        if self._buffer.startswith("\ufeff"):
            self._position = 1

    @property
    def line(self) -> int:
        """Line of the position."""
        return self.place()[0]

    def place(self) -> tuple[int, int]:
        """Line and byte of the position."""
        passed = self._buffer[self._counted : self._position]
        self._byte += len(passed) if passed.isascii() else len(passed.encode())
        self._line += passed.count("\n")
        self._counted = self._position
        return self._line, self._byte

    def peek(self) -> str:
        """The next character that is no white space, which becomes the position; empty at the end."""
        while True:
            self._position = _GAP.match(self._buffer, self._position).end()  # type: ignore[union-attr]  # matches always
            if self._position < len(self._buffer) or self._ended:
                return self._buffer[self._position : self._position + 1]
            self._more()

    def ahead(self, count: int = 20) -> str:
        """The next characters, for messages."""
        return self._buffer[self._position : self._position + count]

    def take(self, choices: str, expected: str = "") -> str:
        """Steps over one of `choices`. Raises DataError when something else stands here."""
        found = self.peek()
        if not found or found not in choices:
            seen = repr(self.ahead()) if found else f"the file ends inside the {'list' if ']' in choices else 'object'}"
            raise DataError(
                seen, expected=expected or choices, where=f"{self.path}:{self.line}", fix="is the file complete?"
            )
        self._position += 1
        return found

    def value(self) -> Any:
        """The value that begins at the position, which moves behind it. Raises DataError when it is not strict JSON."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._position)
                number = isinstance(value, int | float) and end >= len(self._buffer) - len("e+")
                if self._ended or not number:  # a number at the end of a piece, as `1` of `1e+`, may go on in the next
                    _check_surrogates(self._buffer, self._position, end, value)
                    self._position = end
                    return value
            except json.JSONDecodeError as error:
                near = error.msg.startswith("Unterminated") or error.pos >= len(self._buffer) - _LONGEST_ATOM
                if self._ended or not near:
                    _broken(error, self._buffer, self._position, self.path, self.line)
            except (ValueError, RecursionError) as error:
                _refuse(error, self.path, self.line)
            self._more()

    def expect_end(self, what: str) -> None:
        """Raises DataError when anything but white space follows."""
        if self.peek():
            raise DataError(f"{self.ahead()!r} after {what}", expected="nothing", where=f"{self.path}:{self.line}")

    def _more(self) -> None:
        """Drops what is behind the position and reads on; the window grows when a value does not fit."""
        self.place()
        rest = self._buffer[self._position :]
        wanted, pieces = max(_CHUNK_BYTES, len(rest)), [rest]
        while wanted > 0 and not self._ended:
            chunk = next(self._chunks, b"")
            self._ended = not chunk
            self._bytes_read += len(chunk)
            try:
                pieces.append(self._decoder.decode(chunk, final=self._ended))
            except UnicodeDecodeError as error:  # its object is this chunk with what was left of the one before
                raise not_utf8(self.path, self._bytes_read - len(error.object) + error.start) from error
            wanted -= len(chunk)
        self._buffer = "".join(pieces)
        self._position = self._counted = 0


def not_utf8(path: str, place: int) -> DataError:
    """The error for a file of another encoding."""
    found, fix = f"byte {place} is not UTF-8", "convert the file to UTF-8"
    return DataError(found, expected="UTF-8 text", where=path, fix=fix)


def decode(text: str, position: int, path: str, line: int) -> tuple[Any, int]:
    """One value of `text` and where it ends; `line` is the line of `position`. Raises DataError as `value`."""
    try:
        value, end = _DECODER.raw_decode(text, position)
        _check_surrogates(text, position, end, value)
        return value, end
    except json.JSONDecodeError as error:
        _broken(error, text, position, path, line)
    except (ValueError, RecursionError) as error:
        _refuse(error, path, line)


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


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), -float("inf")):
        raise _RejectedError(f"the number {text[:20]}, which no float can hold")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def _check_surrogates(text: str, start: int, end: int, value: Any) -> None:
    if text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _RejectedError("half of a surrogate pair (broken emoji)") from error


def _broken(error: json.JSONDecodeError, text: str, start: int, path: str, line: int) -> NoReturn:
    inside = error.pos < len(text) and not error.msg.startswith("Unterminated")
    found = f"{error.msg} at {text[error.pos : error.pos + 20]!r}" if inside else "the file ends inside a row"
    where = f"{path}:{line + text.count(chr(10), start, error.pos)}"
    raise DataError(f"broken JSON: {found}", expected="valid JSON", where=where, fix="is the file complete?") from error


def _refuse(error: Exception, path: str, line: int) -> NoReturn:
    raise DataError(str(error), expected="plain JSON", where=f"{path}:{line} (row begins here)") from error
