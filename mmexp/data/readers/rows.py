"""What all readers of rows share: opening a file, checking every row once, and samples on demand."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mmexp.contracts import Dataset, Medium, Part, Preparable, Sample, Turn
from mmexp.data.files import SteadyFile
from mmexp.data.published import Published
from mmexp.data.readers.parts import check_limit, inside
from mmexp.data.readers.regions import with_shares
from mmexp.data.rowstore import FileRows, PackedRows, Rows, member
from mmexp.data.sources import Row, as_file, iterate_rows
from mmexp.errors import DataError

_SHOWN_ERRORS = 5
_NOT_CONTENT = {"path", "image_root", "name", "prepare", "limit", "annotations", "instances", "published"}
"""Settings by which the same samples may still be the same: where files are or can be had, and a file joined into the
rows."""


@dataclass(frozen=True, kw_only=True)
class RowsConfig(ABC):
    """One annotation file: a format says how a row is found (`read`) and what it means (`parse`)."""

    keyed: ClassVar[bool] = False
    """Rows are members of one object and their key is the id."""
    packed: ClassVar[bool] = False
    """Rows are joined by `read` and kept in memory, instead of being read from the file when they are needed."""

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
    published: Mapping[str, Published] = field(default_factory=dict)
    """Where the files can be had, by the setting that they belong to."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a limit below 1."""
        check_limit(self.limit)

    @abstractmethod
    def parse(self, row: dict[str, Any], number: int) -> Sample:
        """A row as turns, with image paths as they stand in the row.

        Raises:
            DataError: the row is not as the format says; the place is added by the caller.
        """

    def check(self, row: dict[str, Any], number: int) -> int:
        """The length hint of a row (see `contracts.Hinted`). Raises DataError as `parse`."""
        return length_hint(self.parse(row, number).turns)

    def reread(self, row: dict[str, Any], number: int) -> Sample:
        """As `parse`, for a row that passed `check` before."""
        return self.parse(row, number)

    def read(self, file: SteadyFile) -> Iterator[Row]:
        """The rows of the file."""
        return iterate_rows(file)

    def build(self) -> RowDataset:
        """Reads and checks every row.

        Raises:
            DataError: the file is missing or broken, or rows are not as described (the first ones are listed).
        """
        dataset, complaints = self.open_rows()
        complaints.settle(complaints.num_rows)
        return dataset

    def build_tolerant(self) -> tuple[RowDataset, list[DataError]]:
        """As `build`, but rows that cannot be used are left out and told of: for a look at the data, not for training.

        Raises:
            DataError: the file is missing or broken as a whole.
        """
        dataset, complaints = self.open_rows()
        return dataset, complaints.errors

    def open_rows(self) -> tuple[RowDataset, Complaints]:
        """The rows that can be used, and what is wrong with the others."""
        if self.prepare is not None:
            self.prepare.prepare()
        file = as_file(self.path)
        rows, hints, complaints = _load(self, file)
        root = Path(self.image_root).expanduser() if self.image_root else Path(file.path).parent
        return RowDataset(rows, hints, replace(self, prepare=None), file.path, root), complaints


class RowDataset(Dataset):
    """Samples of one annotation file; a row becomes one when it is asked for.

    Args:
        rows: Checked rows.
        hints: numpy int32[rows].
        reader: The format; its settings are part of the fingerprint.
        path: The file, for messages.
        image_root: Folder of the pictures.
    """

    def __init__(self, rows: Rows, hints: Any, reader: RowsConfig, path: str, image_root: Path) -> None:
        self._rows, self._hints, self._reader, self._path = rows, hints, reader, path
        self.name = reader.name or Path(path).stem
        self._root = os.path.realpath(image_root)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        index = index % len(self)
        sample = self._reader.reread(row, index)
        where = f"{self._path}: row {index} (id {sample.id!r})"
        return replace(sample, dataset=self.name, turns=_resolved(sample.turns, self._root, where))

    def hints(self) -> Any:
        """numpy int32[rows]; see `contracts.Hinted`."""
        return self._hints

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of rows and settings: two data sets with the same one train the same."""
        settings = {f.name: getattr(self._reader, f.name) for f in fields(self._reader) if f.name not in _NOT_CONTENT}
        digest = hashlib.sha256(repr((type(self._reader).__name__, len(self), settings)).encode())
        for block in self._rows.content():
            digest.update(block)
        return digest.hexdigest()


def length_hint(turns: Iterable[Turn]) -> int:
    """White-space words of all turns, negative when they hold no medium."""
    turns = tuple(turns)
    words = max(1, sum(len(turn.text.split()) for turn in turns))
    return words if any(turn.media for turn in turns) else -words


def row_id(row: dict[str, Any], number: int, key: str = "id") -> str:
    """The row's own id, else its number."""
    found = row.get(key)
    return f"row-{number}" if found is None or found == "" else str(found)


class Complaints:
    """Mistakes of single rows, gathered so that one look at the file shows them all.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.errors: list[DataError] = []
        self.num_rows = 0
        """Rows looked at, good ones included."""

    def add(self, error: DataError, place: str) -> None:
        """Notes the mistake of one row."""
        where = f"{self._path}: {place}"
        self.errors.append(DataError(error.found, expected=error.expected, where=where, fix=error.fix))

    def settle(self, num_rows: int) -> None:
        """Raises DataError when there was a mistake, or no row at all."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            shown = "\n".join(error.render() for error in self.errors[:_SHOWN_ERRORS])
            hidden = len(self.errors) - _SHOWN_ERRORS
            more = f"\n... and {hidden} more" if hidden > 0 else ""
            raise DataError(f"{len(self.errors)} of {num_rows} rows cannot be used\n{shown}{more}", where=self._path)
        if not num_rows:
            raise DataError("no row", expected="at least one row", where=self._path)


def _load(reader: RowsConfig, file: SteadyFile) -> tuple[Rows, Any, Complaints]:
    """The rows that can be used, their hints, and the mistakes of the others."""
    import array

    import numpy as np

    starts, ends, hints = array.array("q"), array.array("q"), array.array("i")
    packed, complaints = PackedRows(), Complaints(file.path)
    for number, row in enumerate(reader.read(file)):
        if reader.limit is not None and number >= reader.limit:
            break
        value = row.value if row.key is None else member(row.key, row.value)
        complaints.num_rows += 1
        try:
            if not isinstance(value, dict):
                raise DataError(f"a row of type {type(value).__name__}", expected="an object")
            hints.append(max(-(2**31), min(2**31 - 1, reader.check(value, number))))
        except DataError as error:
            known = row_id(value, number) if isinstance(value, dict) else None
            complaints.add(error, f"row {number} (line {row.line}, id {known!r})")
            continue
        if reader.packed:
            packed.append(value)
        else:
            starts.append(row.start)
            ends.append(row.end)
    places = [np.frombuffer(array_, dtype=np.int64) for array_ in (starts, ends)]
    rows = packed.freeze() if reader.packed else FileRows(file, *places, keyed=reader.keyed)
    return rows, np.frombuffer(hints, dtype=np.int32), complaints


def _resolved(turns: tuple[Turn, ...], root: str, where: str) -> tuple[Turn, ...]:
    """The turns with image paths made absolute and pixel boxes made shares of their picture."""
    result = []
    for turn in turns:
        if any(isinstance(part, Medium) and isinstance(part.source, str) for part in turn.parts):
            parts: list[Part] = [
                replace(part, source=inside(part.source, root, where))
                if isinstance(part, Medium) and isinstance(part.source, str)
                else part
                for part in turn.parts
            ]
            turn = replace(turn, parts=tuple(parts))
        result.append(turn)
    return with_shares(result, where)
