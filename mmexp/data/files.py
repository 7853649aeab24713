"""Files that many processes read at random places, and what to say when one is missing or has changed."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from mmexp.errors import DataError

_MAX_OPEN_FILES = 64


class SteadyFile:
    """A file that stays as it was when this object was made; pickles as a path, so that workers copy nothing.

    Args:
        path: The file.
        what: Its name in messages.
    """

    def __init__(self, path: str | os.PathLike[str], what: str = "the annotation file") -> None:
        """Raises DataError when there is no such file or it cannot be read."""
        self.path = os.path.abspath(path)
        try:
            found = os.stat(self.path)
            if os.path.isdir(self.path):
                raise DataError(f"{what} is a folder", expected="a file", where=self.path)
            if not os.access(self.path, os.R_OK):
                raise DataError(f"{what} cannot be read (permission denied)", where=self.path)
        except FileNotFoundError as error:
            raise missing(Path(self.path), what) from error
        except (OSError, ValueError) as error:
            raise DataError(f"{what} cannot be read ({error})", where=self.path) from error
        self.size, self.mtime_ns = found.st_size, found.st_mtime_ns

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start` on.

        Raises:
            DataError: the file is not the one that was opened, or ends too early.
        """
        found = _opened(self.path, self.size, self.mtime_ns).read(start, length)
        if len(found) != length:
            raise _changed(self.path, f"{len(found)} of {length} bytes at byte {start}")
        return found

    def chunks(self, start: int = 0, end: int | None = None, size: int = 1 << 22) -> Iterator[bytes]:
        """The bytes from `start` to `end` in pieces of `size`."""
        end = self.size if end is None else end
        while start < end:
            yield self.read(start, min(size, end - start))
            start += size


class _Handle:
    """An open file, closed when nobody holds it any more."""

    def __init__(self, path: str, size: int, mtime_ns: int) -> None:
        self._path, self._size, self._mtime_ns = path, size, mtime_ns
        self._number = -1
        try:
            self._number = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise _changed(path, f"it cannot be opened any more ({error.strerror})") from error

    def read(self, start: int, length: int) -> bytes:
        found = os.fstat(self._number)
        if (found.st_size, found.st_mtime_ns) != (self._size, self._mtime_ns):
            raise _changed(self._path, f"{found.st_size} bytes now, {self._size} when it was opened")
        pieces = []
        while length > 0 and (piece := os.pread(self._number, length, start)):  # one call gives at most 2 GiB
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return b"".join(pieces)

    def __del__(self) -> None:
        if self._number >= 0:
            os.close(self._number)


_opened = lru_cache(maxsize=_MAX_OPEN_FILES)(_Handle)


def _changed(path: str, found: str) -> DataError:
    return DataError(
        f"the file changed while it was in use: {found}",
        expected="the file that was read and checked at the start",
        where=path,
        fix="leave data files alone during a run; start again to read the new file",
    )


def missing(path: Path, what: str, suffixes: tuple[str, ...] = (".json", ".jsonl")) -> DataError:
    """The error for a file that is not there, with what exists near it."""
    return DataError(f"{what} does not exist", expected="an existing file", where=str(path), fix=_near(path, suffixes))


def _near(path: Path, suffixes: tuple[str, ...]) -> str:
    folder = path.parent
    if not folder.is_dir():
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return f"the folder {path.parent} does not exist either; the nearest one that does is {folder}"
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in suffixes)
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.3) or names[:5]
    return f"one of the files there: {', '.join(near)}" if near else f"{folder} holds no {' or '.join(suffixes)} file"
