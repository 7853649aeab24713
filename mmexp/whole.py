"""Files that others see whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A new file beside `path`, whose folder is made; it is on the disk and takes the place of `path` when the block
    ends, and is removed when the block fails.

    Raises:
        OSError: as whatever writes does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes a file whole; gives its path."""
    with writing(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 whole; half of a surrogate pair, which models and web pages leave behind, as `\\\\udcxx`."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> Path:
    """Writes JSON whole."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, values: Iterable[Any]) -> Path:
    """Writes one JSON value a line, whole."""
    return write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))
