"""ScienceQA: questions with options, half of them without a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mmexp.contracts import Sample
from mmexp.data.files import SteadyFile
from mmexp.data.readers.parts import exchange, others, picture, words
from mmexp.data.readers.prompts import OPTION_LETTER, fill, under_letters
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.data.sources import Row, iterate_members
from mmexp.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ScienceQaConfig(RowsConfig):
    """ScienceQA's `problems.json`: an object of problem id to `question`, `choices`, `answer` (place of the right one).

    `Sample.meta` has the subject as `type`, and for benchmarks `options` and the place of the right one as `right`.

    Source: lupantech/ScienceQA (fields); LLaVA for options and the question's end.
    """

    packed: ClassVar[bool] = True

    split: str | None = "train"
    """Only problems of this split; null for all."""
    image_name: str = "{split}/{id}/{image}"
    """File of a picture under the image folder."""
    suffix: str = OPTION_LETTER
    """Stands behind the options."""
    use_hint: bool = True
    """Put the problem's `hint` in front of the question."""

    def read(self, file: SteadyFile) -> Iterator[Row]:
        for row in iterate_members(file):
            found = row.value.get("split") if isinstance(row.value, dict) else None
            if self.split is None or not isinstance(found, str) or found == self.split:
                yield row

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        choices, right = row.get("choices"), row.get("answer")
        if self.split is not None and row.get("split") != self.split:
            expected = f"train, val or test, because of data.split={self.split}"
            raise DataError(f"`split` is {repr(row.get('split'))[:60]}", expected=expected, fix="data.split=null")
        if not isinstance(choices, list) or not 1 < len(choices) <= 26 or not all(isinstance(c, str) for c in choices):
            raise DataError(f"`choices` is {repr(choices)[:60]}", expected="a list of 2 to 26 texts")
        if not isinstance(right, int) or isinstance(right, bool) or not 0 <= right < len(choices):
            raise DataError(
                f"`answer` is {right!r}", expected=f"the place of the right choice, 0 to {len(choices) - 1}"
            )
        media = []
        if row.get("image"):
            media = [picture(fill(self.image_name, {key: row.get(key) for key in ("split", "id", "image")}))]
        hint = [words(row, "hint")] if self.use_hint and row.get("hint") else []
        question = "\n".join([*hint, words(row, "question"), *under_letters(choices)]) + self.suffix
        meta = {"type": row.get("subject"), **others(row, "id", "question"), "options": choices, "right": right}
        return Sample(id=row_id(row, number), turns=exchange(question, chr(65 + right), *media), meta=meta)
