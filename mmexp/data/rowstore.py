"""Rows that samples are made of: in their file, or packed into one block of bytes; never as Python objects."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmexp.data.files import SteadyFile


class Rows(Protocol):
    """Random access to rows as dictionaries."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def content(self) -> Iterable[bytes]:
        """All bytes of the rows, for a hash."""
        ...


@dataclass(frozen=True)
class FileRows:
    """Rows that stay in their file: two offsets each in memory, so that there is nothing for workers to copy."""

    file: SteadyFile
    starts: Any  # numpy int64[rows]; numpy is not imported for its name alone
    ends: Any
    keyed: bool = False
    """Rows are members `"key": {...}` of one object; the key becomes `id`."""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = _inside(index, len(self))
        start, end = int(self.starts[index]), int(self.ends[index])
        raw = self.file.read(start, end - start)
        if not self.keyed:
            return json.loads(raw)
        key, value = next(iter(json.loads(b"{" + raw + b"}").items()))
        return member(key, value)

    def content(self) -> Iterable[bytes]:
        return self.file.chunks(int(self.starts[0]), int(self.ends[-1])) if len(self) else ()


@dataclass
class PackedRows:
    """Rows made here (joined from several files) as JSON in one block of bytes, so that forked workers share it."""

    data: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=lambda: [0])

    def append(self, row: dict[str, Any]) -> None:
        """Adds one row."""
        self.data += json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()
        self.ends.append(len(self.data))

    def freeze(self) -> FrozenRows:
        """The rows for reading, offsets as an array."""
        import numpy as np

        return FrozenRows(bytes(self.data), np.asarray(self.ends, dtype=np.int64))


@dataclass(frozen=True)
class FrozenRows:
    """Random access to packed rows."""

    data: bytes
    offsets: Any  # numpy int64[rows + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = _inside(index, len(self))
        return json.loads(self.data[int(self.offsets[index]) : int(self.offsets[index + 1])])

    def content(self) -> Iterable[bytes]:
        return (self.data,)


def member(key: str, value: Any) -> Any:
    """A member of an object as a row: its key is the id."""
    return {"id": key, **value} if isinstance(value, dict) else value


def _inside(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(index)
    return index % length
