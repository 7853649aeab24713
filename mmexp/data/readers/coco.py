"""COCO's captions file: pictures in one list, captions in another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mmexp.contracts import Sample
from mmexp.data.files import SteadyFile
from mmexp.data.readers.parts import exchange, is_key, others, picture, words
from mmexp.data.readers.prompts import BRIEF_PROMPTS, prompt_for
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.data.sources import Row, iterate_under
from mmexp.errors import DataError


@dataclass(frozen=True, kw_only=True)
class CocoCaptionsConfig(RowsConfig):
    """COCO's captions file: a row for each entry of `annotations`, with the file name from `images`.

    With `per: picture` a row for each picture, as benchmarks need it: all its captions are `targets` in `Sample.meta`.

    Source: COCO data format, https://cocodataset.org/#format-data.
    """

    packed: ClassVar[bool] = True

    prompts: tuple[str, ...] = BRIEF_PROMPTS
    """Instructions that the rows take in turn; a template of captions alone leaves them out."""
    per: Literal["caption", "picture"] = "caption"
    """What makes a row: every caption, or every picture with its first caption as the answer."""

    def read(self, file: SteadyFile) -> Iterator[Row]:
        names = image_names(file)
        rows = iterate_under(file, "annotations")
        for row in _pictures(rows) if self.per == "picture" else rows:
            if isinstance(row.value, dict):
                image_id = row.value.get("image_id")
                row.value["file_name"] = names.get(image_id) if is_key(image_id) else None
            yield row

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        if row.get("file_name") is None:
            raise DataError(f"no picture of `image_id` {row.get('image_id')!r}", expected="an entry of `images`")
        for another in row["targets"] if self.per == "picture" else ():
            words({"caption": another}, "caption")
        turns = exchange(
            prompt_for(self.prompts, number), words(row, "caption"), picture(row["file_name"], "file_name")
        )
        name = row_id(row, number, "image_id" if self.per == "picture" else "id")
        return Sample(id=name, turns=turns, meta=others(row, "id", "caption", "file_name"))


def _pictures(rows: Iterator[Row]) -> Iterator[Row]:
    """The first row of every picture with the captions of all of them; a row without a picture stays as it is."""
    firsts: dict[Any, Row] = {}
    for row in rows:
        image_id = row.value.get("image_id") if isinstance(row.value, dict) else None
        if not is_key(image_id):
            yield row
            continue
        first = firsts.setdefault(image_id, row)
        captions = [] if first is row else first.value["targets"]
        first.value["targets"] = [*captions, row.value.get("caption")]
    yield from firsts.values()


def image_names(file: SteadyFile) -> dict[Any, str]:
    """File names by id, from the list `images`. Raises DataError for an entry without one, and for an id twice."""
    names: dict[Any, str] = {}
    for row in iterate_under(file, "images"):
        entry = row.value if isinstance(row.value, dict) else {}
        if not is_key(entry.get("id")) or not isinstance(entry.get("file_name"), str):
            expected = "{id, file_name, ...}"
            raise DataError(f"an image is {repr(row.value)[:80]}", expected=expected, where=f"{file.path}:{row.line}")
        if entry["id"] in names:
            raise DataError(f"the image id {entry['id']!r} twice", where=f"{file.path}:{row.line}")
        names[entry["id"]] = entry["file_name"]
    return names
