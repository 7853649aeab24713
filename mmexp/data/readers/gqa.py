"""GQA's question files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mmexp.contracts import Sample
from mmexp.data.files import SteadyFile
from mmexp.data.readers.parts import exchange, others, picture, words
from mmexp.data.readers.prompts import SHORT_ANSWER, named_image
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.data.sources import Row, iterate_members


@dataclass(frozen=True, kw_only=True)
class GqaConfig(RowsConfig):
    """GQA's question files: an object of question id to `question`, `answer`, `imageId`.

    The structural type of a question (verify, query, choose, ...) is `type` in `Sample.meta`.

    Source: https://cs.stanford.edu/people/dorarad/gqa (downloads).
    """

    keyed: ClassVar[bool] = True

    image_name: str = "{imageId}.jpg"
    """File of a picture under the image folder."""
    suffix: str = SHORT_ANSWER
    """Stands behind every question."""
    full_answer: bool = False
    """Learn `fullAnswer`, a sentence, instead of `answer`."""

    def read(self, file: SteadyFile) -> Iterator[Row]:
        return iterate_members(file)

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        image = picture(named_image(self.image_name, row, "imageId"))
        answer = words(row, "fullAnswer" if self.full_answer else "answer")
        turns = exchange(words(row, "question") + self.suffix, answer, image)
        kinds = row.get("types")
        kind = kinds.get("structural") if isinstance(kinds, dict) else None
        meta = {"type": kind, **others(row, "id", "question")}
        return Sample(id=row_id(row, number), turns=turns, meta=meta)
