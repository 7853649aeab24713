"""VQAv2: a file of questions and a file of answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from sys import intern
from typing import Any, ClassVar

from mmexp.contracts import Sample
from mmexp.data.files import SteadyFile
from mmexp.data.readers.parts import exchange, picture, words
from mmexp.data.readers.prompts import SHORT_ANSWER, named_image
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.data.sources import Row, as_file, iterate_under
from mmexp.errors import DataError


@dataclass(frozen=True, kw_only=True)
class VqaV2Config(RowsConfig):
    """VQAv2's two files joined by `question_id`; the answer is `multiple_choice_answer`, all ten stay in `Sample.meta`.

    Source: https://visualqa.org/vqa_v2_format (fields), LLaVA for the question's end.
    """

    packed: ClassVar[bool] = True

    annotations: str = ""
    """The annotations file; `path` is the questions file."""
    image_name: str = "COCO_train2014_{image_id:012d}.jpg"
    """File of a picture under the image folder."""
    suffix: str = SHORT_ANSWER
    """Stands behind every question."""

    def read(self, file: SteadyFile) -> Iterator[Row]:
        if not self.annotations:
            fix = "data.annotations=v2_mscoco_train2014_annotations.json"
            raise DataError("no annotations file", expected="questions and answers", where="data.annotations", fix=fix)
        answers, source = {}, as_file(self.annotations, "the annotations file (data.annotations)")
        for row in iterate_under(source, "annotations"):
            entry = row.value if isinstance(row.value, dict) else {}
            if "question_id" not in entry:
                raise DataError(
                    f"{repr(row.value)[:80]}", expected="a `question_id`", where=f"{source.path}:{row.line}"
                )
            answers[entry.pop("question_id")] = _slim(entry)
        for row in iterate_under(file, "questions"):
            if isinstance(row.value, dict):
                row.value.update({"annotation": answers.pop(row.value.get("question_id"), None)})
            yield row
        if answers:
            found = f"{len(answers)} answers without a question, the first to question {next(iter(answers))!r}"
            raise DataError(
                found, expected=f"the answers of {file.path}", where=source.path, fix="use two files of one split"
            )

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        if not isinstance(row.get("annotation"), dict):
            found = f"no answer to question {row.get('question_id')!r}"
            raise DataError(found, expected="an entry of the annotations file", fix="use two files of one split")
        image_id, answer = row.get("image_id"), row["annotation"]
        if answer.get("image_id", image_id) != image_id:
            raise DataError(
                f"picture {image_id!r}, and {answer['image_id']!r} in the annotations", expected="one picture"
            )
        image = picture(named_image(self.image_name, row, "image_id"))
        turns = exchange(words(row, "question") + self.suffix, words(answer, "multiple_choice_answer"), image)
        meta = {"image_id": image_id, "answers": answer.get("answers"), "type": answer.get("answer_type")}
        meta["question_type"] = answer.get("question_type")
        return Sample(id=row_id(row, number, "question_id"), turns=turns, meta=meta)


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    """The annotation with plain texts for answers: ten dictionaries a question would not fit into memory."""
    answers = entry.get("answers")
    if isinstance(answers, list):
        texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
        entry["answers"] = [intern(text) if isinstance(text, str) else text for text in texts]
    return entry
