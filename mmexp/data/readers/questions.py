"""Questions with short answers: VQAv2 (and LAVIS rows), GQA, TextVQA, ScienceQA, POPE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mmexp.contracts import Sample
from mmexp.data.files import SteadyFile
from mmexp.data.readers.captions import named_image
from mmexp.data.readers.parts import exchange, others, picture, words
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.data.sources import Row, as_file, iterate_members, iterate_under
from mmexp.errors import DataError

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""Source: Improved Baselines with Visual Instruction Tuning, section 3.2 (response format prompting)."""
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."
"""Source: as `SHORT_ANSWER`, table of response formatting prompts."""


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
                raise DataError(f"{repr(row.value)[:80]}", expected="a `question_id`", where=f"{source.path}:{row.line}")
            answers[entry.pop("question_id")] = _slim(entry)
        for row in iterate_under(file, "questions"):
            if isinstance(row.value, dict):
                row.value.update({"annotation": answers.pop(row.value.get("question_id"), None)})
            yield row
        if answers:
            found = f"{len(answers)} answers without a question, the first to question {next(iter(answers))!r}"
            raise DataError(found, expected=f"the answers of {file.path}", where=source.path, fix="use two files of one split")

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        if not isinstance(row.get("annotation"), dict):
            found = f"no answer to question {row.get('question_id')!r}"
            raise DataError(found, expected="an entry of the annotations file", fix="use two files of one split")
        image_id, answer = row.get("image_id"), row["annotation"]
        if answer.get("image_id", image_id) != image_id:
            raise DataError(f"picture {image_id!r}, and {answer['image_id']!r} in the annotations", expected="one picture")
        image = picture(named_image(self.image_name, row, "image_id"))
        turns = exchange(words(row, "question") + self.suffix, words(answer, "multiple_choice_answer"), image)
        meta = {"image_id": image_id, "answers": answer.get("answers"), "type": answer.get("answer_type")}
        meta["question_type"] = answer.get("question_type")
        return Sample(id=row_id(row, number, "question_id"), turns=turns, meta=meta)


@dataclass(frozen=True, kw_only=True)
class LavisVqaConfig(RowsConfig):
    """LAVIS rows of `image`, `question` and an `answer` or a list of them, of which the most frequent one is learnt."""

    suffix: str = SHORT_ANSWER
    """Stands behind every question."""

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        found = row.get("answer", row.get("answers"))
        answer = most_common(found) if isinstance(found, list) else words(row, "answer")
        turns = exchange(words(row, "question") + self.suffix, answer, picture(row.get("image")))
        meta = {**others(row, "id", "question_id", "question", "answer", "answers", "image"), "answers": found}
        return Sample(id=row_id(row, number, "question_id"), turns=turns, meta=meta)


@dataclass(frozen=True, kw_only=True)
class GqaConfig(RowsConfig):
    """GQA's question files: an object of question id to `question`, `answer`, `imageId`.

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
        return Sample(id=row_id(row, number), turns=turns, meta=others(row, "id", "question"))


@dataclass(frozen=True, kw_only=True)
class TextVqaConfig(RowsConfig):
    """TextVQA: the list `data` of `question`, `image_id` and ten `answers`, of which the most frequent one is learnt.

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
        turns = exchange(words(row, "question") + self.suffix, most_common(answers), image)
        return Sample(id=row_id(row, number, "question_id"), turns=turns, meta=others(row, "question_id", "question"))


@dataclass(frozen=True, kw_only=True)
class ScienceQaConfig(RowsConfig):
    """ScienceQA's `problems.json`: an object of problem id to `question`, `choices`, `answer` (place of the right one).

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
            if self.split is None or not isinstance(row.value, dict) or row.value.get("split") == self.split:
                yield row

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        choices, right = row.get("choices"), row.get("answer")
        if not isinstance(choices, list) or not 1 < len(choices) <= 26:
            raise DataError(f"`choices` is {repr(choices)[:60]}", expected="a list of 2 to 26 texts")
        if not isinstance(right, int) or not 0 <= right < len(choices):
            raise DataError(f"`answer` is {right!r}", expected=f"the place of the right choice, 0 to {len(choices) - 1}")
        media = []
        if row.get("image"):
            names = {key: row.get(key) for key in ("split", "id", "image")}
            media = [picture(self.image_name.format(**names))]
        hint = [row["hint"]] if self.use_hint and row.get("hint") else []
        options = [f"{chr(65 + place)}. {choice}" for place, choice in enumerate(choices)]
        question = "\n".join([*hint, words(row, "question"), *options]) + self.suffix
        meta = others(row, "id", "question")
        return Sample(id=row_id(row, number), turns=exchange(question, chr(65 + right), *media), meta=meta)


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
        return Sample(id=row_id(row, number, "question_id"), turns=turns, meta=others(row, "question_id", "text", "image"))


def most_common(answers: list[Any]) -> str:
    """The most frequent answer, the first one of several. Raises DataError when there is none."""
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    counts = Counter(text for text in texts if isinstance(text, str) and text.strip())
    if not counts:
        raise DataError(f"`answers` is {repr(answers)[:60]}", expected="at least one text", fix="leave the row out")
    return counts.most_common(1)[0][0]


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    """The annotation with plain texts for answers: ten dictionaries a question would not fit into memory."""
    answers = entry.get("answers")
    if isinstance(answers, list):
        entry["answers"] = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    return entry
