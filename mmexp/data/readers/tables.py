"""Parquet files and folders written by Hugging Face `datasets`, opened by that library when it is installed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from mmexp.contracts import Dataset, Medium, Sample
from mmexp.data.published import Published
from mmexp.data.readers.columns import Columns, sample_of
from mmexp.data.readers.parts import check_limit, inside
from mmexp.data.readers.prompts import BRIEF_PROMPTS
from mmexp.data.readers.regions import with_shares
from mmexp.errors import DataError

_NUMBERED = re.compile(r"[-_.]?\d+(?:-of-\d+)?(?:-[0-9a-f]{8,})?$")


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """A parquet file, a folder of them, or a folder of `datasets.save_to_disk`; needs the extra `tables`.

    Pictures stay encoded; paths in the table are relative to `image_root`.
    """

    path: str
    split: str | None = None
    """Split of a folder that holds several."""
    image_root: str | None = None
    """Folder that image paths are relative to and must stay under; null for the folder of the table."""
    name: str | None = None
    """Name in messages and counts; null for the file's or folder's name."""
    columns: Columns = field(default_factory=Columns)
    """Names of the columns, where they are not the usual ones (`image`, `text`, ...)."""
    prompts: tuple[str, ...] = BRIEF_PROMPTS
    """Instructions that captions take in turn."""
    suffix: str = ""
    """Stands behind every question."""
    limit: int | None = None
    """Only the first so many rows."""
    published: Mapping[str, Published] = field(default_factory=dict)
    """Where the files can be had, by the setting that they belong to."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a limit below 1."""
        check_limit(self.limit)

    def build(self) -> TableDataset:
        """Opens the table (memory-mapped, so workers share it) and finds its columns.

        Raises:
            DataError: no such table, `datasets` is not installed, no such split or column.
        """
        path = Path(self.path).expanduser().absolute()
        table = _open(path, self.split)
        root = Path(self.image_root).expanduser() if self.image_root else path if path.is_dir() else path.parent
        return TableDataset(table, self, str(path), root)


class TableDataset(Dataset):
    """Samples of a table.

    Args:
        table: Rows as dictionaries, with `column_names` where they are known without reading a row.
        reader: Settings.
        path: The table, for messages.
        image_root: Folder of the pictures that are only named.
    """

    def __init__(self, table: Sequence[dict[str, Any]], reader: TableConfig, path: str, image_root: Path) -> None:
        if not len(table):
            raise DataError("no row", expected="at least one row", where=path)
        names = getattr(table, "column_names", None) or tuple(table[0])
        self._table, self._reader, self._path = table, reader, path
        self._columns = reader.columns.resolve(tuple(names), path)
        self._root = os.path.realpath(image_root)
        self._length = len(table) if reader.limit is None else min(len(table), reader.limit)
        self.name = reader.name or Path(path).stem

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        where = f"{self._path}: row {index}"
        try:
            row = self._table[index]
            sample = sample_of(row, self._columns, index, self._reader.prompts, self._reader.suffix)
        except DataError as error:
            raise DataError(error.found, expected=error.expected, where=where, fix=error.fix) from error
        turns = [replace(turn, parts=tuple(self._placed(part, where) for part in turn.parts)) for turn in sample.turns]
        return replace(sample, dataset=self.name, turns=with_shares(turns, where))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the table's own fingerprint, or of all its rows, and of the settings."""
        own = getattr(self._table, "_fingerprint", None)
        settings = (self._columns, self._reader.prompts, self._reader.suffix, len(self))
        digest = hashlib.sha256(repr((own, settings)).encode())
        for index in range(0 if own else len(self)):
            digest.update(repr(self._table[index]).encode())
        return digest.hexdigest()

    def _placed(self, part: Any, where: str) -> Any:
        if isinstance(part, Medium) and isinstance(part.source, str):
            return replace(part, source=inside(part.source, self._root, where))
        return part


def _open(path: Path, split: str | None) -> Any:
    """The rows of the table, with pictures still encoded."""
    if not path.exists():
        raise DataError("the table does not exist", expected="a parquet file or a folder", where=str(path))
    is_saved = path.is_dir() and any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    files = [] if is_saved else _parquet_files(path, split)
    if not files and not is_saved:
        raise DataError("no parquet file and no saved dataset in this folder", expected="one of them", where=str(path))
    try:
        datasets: Any = import_module("datasets")  # optional, so nothing here may need it to be imported
    except ImportError as error:
        fix = "pip install 'mmexp[tables]', or convert the table to JSONL or webdataset tars"
        raise DataError("the package `datasets` is not installed", expected="it, to read this table",
                        where=str(path), fix=fix) from error  # fmt: skip
    try:
        if is_saved:
            table = datasets.load_from_disk(str(path))
        else:
            table = datasets.load_dataset("parquet", data_files={"rows": [str(file) for file in files]})["rows"]
    except Exception as error:  # the library raises anything, from OSError to pyarrow's own
        raise DataError(f"`datasets` cannot open it: {error}", where=str(path)) from error
    if isinstance(table, datasets.DatasetDict):
        table = table[_split(tuple(table), split, path)]
    return _undecoded(table, datasets)


def _parquet_files(path: Path, split: str | None) -> list[Path]:
    """The files of one split (`train-00000-of-00002.parquet` belongs to `train`). Raises DataError if unclear."""
    if path.is_file():
        return [path]
    groups: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*.parquet")):
        groups.setdefault(_NUMBERED.sub("", file.stem) or "rows", []).append(file)
    return groups[_split(tuple(groups), split, path)] if groups else []


def _split(names: Sequence[str], split: str | None, path: Path) -> str:
    if split in names:
        return str(split)
    if split is None and len(names) == 1:
        return names[0]
    found = f"no split {split!r}" if split else f"{len(names)} splits and none is chosen"
    raise DataError(found, expected=f"one of {', '.join(names)}", where=str(path), fix=f"data.split={names[0]}")


def _undecoded(table: Any, datasets: Any) -> Any:
    """The table with its picture columns as {bytes, path}: decoding is the processor's part, with its checks."""
    raw = datasets.Image(decode=False)
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, raw)
        elif isinstance(feature, list) and isinstance(feature[0], datasets.Image):
            table = table.cast_column(name, [raw])
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, type(feature)(raw))
    return table
