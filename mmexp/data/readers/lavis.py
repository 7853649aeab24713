"""LAVIS rows: a picture with a caption, or with a question and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmexp.contracts import Sample
from mmexp.data.readers.parts import exchange, others, picture, words
from mmexp.data.readers.prompts import BRIEF_PROMPTS, SHORT_ANSWER, accepted, most_common, prompt_for
from mmexp.data.readers.rows import RowsConfig, row_id


@dataclass(frozen=True, kw_only=True)
class LavisCaptionsConfig(RowsConfig):
    """LAVIS rows of `image` and `caption`; a list of captions gives the first, and all are `targets` in
    `Sample.meta`."""

    prompts: tuple[str, ...] = BRIEF_PROMPTS
    """Instructions that the rows take in turn; a template of captions alone leaves them out."""

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        found = row.get("caption")
        all_captions = {"captions": found, "targets": found} if isinstance(found, list) else {}
        first, *more = found if isinstance(found, list) and found else [found]
        caption = words({"caption": first} if "caption" in row else row, "caption")
        for another in more:
            words({"caption": another}, "caption")
        turns = exchange(prompt_for(self.prompts, number), caption, picture(row.get("image")))
        meta = {**others(row, "id", "caption", "image"), **all_captions}
        return Sample(id=row_id(row, number), turns=turns, meta=meta)


@dataclass(frozen=True, kw_only=True)
class LavisVqaConfig(RowsConfig):
    """LAVIS rows of `image`, `question` and an `answer` or a list of them, of which the most frequent one is learnt.

    `Sample.meta` has the list as `answers`, and as `targets` those that count as right (`prompts.accepted`).
    """

    suffix: str = SHORT_ANSWER
    """Stands behind every question."""

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        found = row.get("answer", row.get("answers"))
        answer = most_common(found) if isinstance(found, list) else words(row, "answer")
        turns = exchange(words(row, "question") + self.suffix, answer, picture(row.get("image")))
        meta = {**others(row, "id", "question_id", "question", "answer", "answers", "image"), "answers": found}
        meta |= {"targets": accepted(found, answer)} if isinstance(found, list) else {}
        return Sample(id=row_id(row, number, "question_id"), turns=turns, meta=meta)
