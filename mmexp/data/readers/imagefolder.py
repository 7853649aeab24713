"""A folder of pictures with `metadata.csv` or `metadata.jsonl`, and CSV files of the same kind."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from mmexp.contracts import Sample
from mmexp.data.files import SteadyFile
from mmexp.data.jsontext import not_utf8
from mmexp.data.readers.columns import Columns, sample_of
from mmexp.data.readers.prompts import BRIEF_PROMPTS
from mmexp.data.readers.rows import Complaints, RowDataset, RowsConfig
from mmexp.data.sources import Row, iterate_rows
from mmexp.errors import DataError

METADATA = ("metadata.csv", "metadata.jsonl")
_MAX_FIELD_CHARS = 1 << 24


@dataclass(frozen=True, kw_only=True)
class ImageFolderConfig(RowsConfig):
    """`path` is the folder, or its metadata file, or any CSV or JSONL with a column of picture paths.

    Source: Hugging Face datasets, ImageFolder.
    """

    packed: ClassVar[bool] = True

    columns: Columns = field(default_factory=Columns)
    """Names of the columns, where they are not the usual ones (`file_name`, `text`, ...)."""
    prompts: tuple[str, ...] = BRIEF_PROMPTS
    """Instructions that captions take in turn."""
    suffix: str = ""
    """Stands behind every question."""

    def open_rows(self) -> tuple[RowDataset, Complaints]:
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            return super().open_rows()
        found = [folder / name for name in METADATA if (folder / name).is_file()]
        if len(found) != 1:
            names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
            what = "two metadata files" if found else f"no metadata file, but {names}"
            raise DataError(what, expected=f"one of {', '.join(METADATA)}", where=str(folder))
        return replace(self, path=str(found[0]), name=self.name or folder.name).open_rows()

    def read(self, file: SteadyFile) -> Iterator[Row]:
        return _csv_rows(file) if file.path.lower().endswith(".csv") else iterate_rows(file)

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        columns = self.columns.resolve(tuple(row), "data.columns")
        if columns.image and not row.get(columns.image):
            raise DataError(f"`{columns.image}` is empty", expected="a path", fix="leave the row out")
        return sample_of(row, columns, number, self.prompts, self.suffix)


def _csv_rows(file: SteadyFile) -> Iterator[Row]:
    """The rows under the header line. Raises DataError when a row has other than the header's number of fields."""
    csv.field_size_limit(_MAX_FIELD_CHARS)
    try:
        text = file.read(0, file.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(file.path, error.start) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header) or not header:
            raise DataError(f"the header is {header}", expected="different names of columns", where=f"{file.path}:1")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                found, fix = f"{len(row)} fields", "put texts with commas into quotes"
                where = f"{file.path}:{reader.line_num}"
                raise DataError(found, expected=f"{len(header)}, as in the header", where=where, fix=fix)
            yield Row(reader.line_num, 0, 0, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise DataError(f"broken CSV: {error}", where=f"{file.path}:{reader.line_num}") from error
