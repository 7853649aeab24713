"""POPE: whether an object is in the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmexp.contracts import Sample
from mmexp.data.readers.parts import exchange, others, picture, words
from mmexp.data.readers.prompts import SHORT_ANSWER
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PopeConfig(RowsConfig):
    """POPE's lines of `question_id`, `image`, `text` and `label` (yes or no).

    Source: RUCAIBox/POPE @ 3df3ba1b; LLaVA for the question's end.
    """

    suffix: str = SHORT_ANSWER
    """Stands behind every question."""

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        if row.get("label") not in ("yes", "no"):
            raise DataError(f"`label` is {row.get('label')!r}", expected="yes or no")
        turns = exchange(words(row, "text") + self.suffix, row["label"], picture(row.get("image")))
        return Sample(
            id=row_id(row, number, "question_id"), turns=turns, meta=others(row, "question_id", "text", "image")
        )
