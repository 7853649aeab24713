"""TextVQA: questions about text in pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmexp.contracts import Sample
from mmexp.data.files import SteadyFile
from mmexp.data.readers.parts import exchange, others, picture, words
from mmexp.data.readers.prompts import SHORT_ANSWER, accepted, most_common, named_image
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.data.sources import Row, iterate_under
from mmexp.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TextVqaConfig(RowsConfig):
    """TextVQA: the list `data` of `question`, `image_id` and ten `answers`, of which the most frequent one is learnt.

    `Sample.meta` has all of them as `answers`, and as `targets` those that count as right (`prompts.accepted`).

    Source: https://textvqa.org/dataset.
    """

    image_name: str = "train_images/{image_id}.jpg"
    """File of a picture under the image folder."""
    suffix: str = SHORT_ANSWER
    """Stands behind every question."""

    def read(self, file: SteadyFile) -> Iterator[Row]:
        return iterate_under(file, "data")

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        answers = row.get("answers")
        if not isinstance(answers, list):
            raise DataError(f"`answers` is {repr(answers)[:60]}", expected="a list (the test split has none)")
        image = picture(named_image(self.image_name, row, "image_id"))
        answer = most_common(answers)
        turns = exchange(words(row, "question") + self.suffix, answer, image)
        meta = {**others(row, "question_id", "question"), "targets": accepted(answers, answer)}
        return Sample(id=row_id(row, number, "question_id"), turns=turns, meta=meta)
