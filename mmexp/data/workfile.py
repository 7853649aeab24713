"""A file that grows line by line and survives a kill at any byte, and files that are there whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmexp.errors import ConfigError, DataError


class WorkFile:
    """What has been done, by row: a line of settings, then JSON lines that add to the entry of their `row`.

    Lines are appended together and forced to the disk; half a line at the end, which a killed process leaves, is cut.

    Args:
        path: The file; its folder is made.
        settings: Plain values that decide what the lines say.

    Raises:
        ConfigError: the file was made with other settings, or its folder is in use for something else.
        DataError: another process works on it, or it is damaged.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        folder = path.parent
        if not path.exists() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} exists and has no {path.name}", expected="a new or empty folder, or one that"
                              " this command began", where="out", fix="another name")  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._lock()
        self.entries: dict[int, dict[str, Any]] = {}
        """By row what is known of it."""
        try:
            self._go_on(settings)
        except BaseException:  # raised again
            self.close()
            raise

    def append(self, entries: Sequence[dict[str, Any]]) -> None:
        """Adds to the entries of their rows, here and on the disk."""
        if entries:
            self._write(entries)
            for entry in entries:
                self._take(entry)

    def close(self) -> None:
        """Lets other processes work on it."""
        self._file.close()

    def _go_on(self, settings: Mapping[str, Any]) -> None:
        """Takes over what stands there, or begins."""
        lines = self._read()
        if lines:
            self._require_same(lines[0], settings)
            for entry in lines[1:]:
                self._take(entry)
        else:
            self._write([{"settings": settings}])

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise DataError("another process works on it", where=str(self.path),
                            fix="wait for it, or another out=") from None  # fmt: skip

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        self._file.truncate(whole)
        found = []
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise DataError(f"line {number} is no JSON", expected="lines of this command", where=str(self.path),
                                fix="remove that line; its row is then done again") from error  # fmt: skip
            if not isinstance(entry, dict) or not ("row" in entry or number == 1):
                raise DataError(f"line {number} has no row", expected="lines of this command", where=str(self.path))
            found.append(entry)
        return found

    def _require_same(self, head: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        before = head.get("settings")
        if not isinstance(before, dict):
            raise DataError("the first line has no settings", expected="a file of this command", where=str(self.path))
        now = json.loads(json.dumps(settings))
        different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if different:
            raise ConfigError(f"the work there was begun with other settings of {', '.join(different)}",
                              where=f"out={self.path.parent}", fix="another out= for other settings")  # fmt: skip

    def _take(self, entry: Mapping[str, Any]) -> None:
        self.entries.setdefault(int(entry["row"]), {}).update(entry)

    def _write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        self._file.write(text.encode("utf-8", "backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())
