"""Tables: which column holds what, for parquet, Hugging Face folders, CSV and metadata files alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import takewhile
from string import ascii_uppercase
from typing import Any

from mmexp.contracts import Medium, Sample
from mmexp.data.readers.llava import LlavaJsonConfig
from mmexp.data.readers.messages import MessagesConfig
from mmexp.data.readers.parts import check_path, exchange, words
from mmexp.data.readers.prompts import BRIEF_PROMPTS, most_common, prompt_for, under_letters
from mmexp.errors import DataError

_USUAL: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "question_id", "image_id"),
    "image": ("images", "image", "file_name", "jpg", "image_path", "img"),
    "text": ("text", "caption", "captions", "sentence", "description"),
    "question": ("question", "query", "problem"),
    "answer": ("answer", "answers", "label", "response"),
    "conversations": ("conversations",),
    "messages": ("messages",),
    "texts": ("texts",),
}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns; one that is null is looked for under its usual names."""

    id: str | None = None
    image: str | None = None
    """A path, encoded bytes, {bytes, path}, a picture, or a list of these."""
    text: str | None = None
    """A caption; of a list the first one, and all of them are `targets` in `Sample.meta`."""
    question: str | None = None
    """Columns A, B, ... beside it, as in MMBench, are options: they stand under the question (behind a `hint`), and as
    `options` in `Sample.meta`. A column `options` of lists gets there as it is."""
    answer: str | None = None
    """A text, or a list of which the most frequent one is learnt."""
    conversations: str | None = None
    """Turns as in LLaVA's rows."""
    messages: str | None = None
    """Turns as chat messages."""
    texts: str | None = None
    """A list of {user, assistant} as in the Cauldron and FineVision; pictures stand in front of the first one."""

    def resolve(self, names: Sequence[str], where: str) -> Columns:
        """The same with the usual names filled in, as far as the table has them.

        Raises:
            DataError: a named column is not in the table, or nothing in it could be learnt.
        """
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for key, name in given.items():
            if name is not None and name not in names:
                raise DataError(f"no column {name!r}", expected=", ".join(names), where=f"{where}, data.columns.{key}")
        found = {
            key: name or next((usual for usual in _USUAL[key] if usual in names), None) for key, name in given.items()
        }
        chosen = replace(self, **found)
        if not chosen.source:
            raise DataError(
                f"the columns {', '.join(names)}",
                expected="a text, question and answer, conversations, messages or texts",
                where=where,
                fix="name the column: data.columns.text=NAME data.columns.image=NAME",
            )
        return chosen

    @property
    def source(self) -> str | None:
        """Which kind of column the turns come from, the richest one first."""
        for kind in ("conversations", "messages", "texts"):
            if getattr(self, kind):
                return kind
        return "question" if self.question and self.answer else "text" if self.text else None


def sample_of(
    row: Mapping[str, Any], columns: Columns, number: int, prompts: tuple[str, ...] = BRIEF_PROMPTS, suffix: str = ""
) -> Sample:
    """A row of a table as a sample.

    Args:
        row: Column name to value.
        columns: Resolved names.
        number: Of the row.
        prompts: Instructions for captions.
        suffix: Stands behind every question.

    Raises:
        DataError: a value is not what its column should hold; the place is added by the caller.
    """
    sources = _sources(row.get(columns.image) if columns.image else None)
    kind = columns.source
    assert kind is not None
    used = [name for field in fields(columns) if (name := getattr(columns, field.name))]
    meta = {key: value for key, value in row.items() if key not in used}
    found = row.get(columns.id) if columns.id else None
    name = f"row-{number}" if found is None or found == "" else str(found)
    media = [Medium(source=source) for source in sources]
    if kind in ("conversations", "messages"):
        return replace(_from_row(kind, row[getattr(columns, kind)], sources, number, meta), id=name)
    if kind == "texts":
        turns = _from_texts(row[columns.texts or ""], media)
    elif kind == "question":
        value = row.get(columns.answer or "")
        answer = most_common(value) if isinstance(value, list) else words(dict(row), columns.answer or "")
        options = _lettered(row)
        meta |= {"answers": value} if isinstance(value, list) else {}
        meta |= {"options": options} if options else {}
        hint = [row["hint"]] if options and isinstance(row.get("hint"), str) else []
        question = "\n".join([*hint, words(dict(row), columns.question or ""), *under_letters(options)])
        turns = exchange(question + suffix, answer, *media)
    else:
        value = row.get(columns.text or "")
        captions = value if isinstance(value, list) and value else [value]
        caption, *_ = [words({"text": text}, "text") for text in captions]
        meta |= {"targets": value} if isinstance(value, list) else {}
        turns = exchange(prompt_for(prompts, number), caption, *media)
    return Sample(id=name, turns=turns, meta=meta)


def _lettered(row: Mapping[str, Any]) -> list[str]:
    """The texts of the columns A, B, C, ..., as far as they are filled; none where there are not two."""
    filled = takewhile(lambda value: isinstance(value, str) and value.strip(), map(row.get, ascii_uppercase))
    options = [str(value) for value in filled]
    return options if len(options) > 1 else []


def with_sources(sample: Sample, sources: Sequence[Any]) -> Sample:
    """The sample with its media, whose sources are the numbers 0, 1, ..., pointing at `sources`."""
    turns = []
    for turn in sample.turns:
        parts = tuple(
            replace(part, source=sources[int(part.source)])
            if isinstance(part, Medium) and isinstance(part.source, str)
            else part
            for part in turn.parts
        )
        turns.append(replace(turn, parts=parts))
    return replace(sample, turns=tuple(turns))


def _from_row(kind: str, value: Any, sources: Sequence[Any], number: int, beside: dict[str, Any]) -> Sample:
    """Turns by the reader of their format, which also sees the other columns (`objects`, `system`, `tools`, ...)."""
    names = [str(place) for place in range(len(sources))] or None
    if kind == "conversations":
        row = {**beside, "image": names, "conversations": value}
        return with_sources(LlavaJsonConfig(path="").parse(row, number), sources)
    row = {**beside, "images": names, "messages": value}
    return with_sources(MessagesConfig(path="").parse(row, number), sources)


def _from_texts(value: Any, media: Sequence[Medium]) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"`texts` is {repr(value)[:60]}", expected="a list of {user, assistant}")
    turns: list[Any] = []
    for number, pair in enumerate(value):
        if not isinstance(pair, dict):
            raise DataError(f"a pair is {repr(pair)[:60]}", expected="{user, assistant}")
        turns += exchange(words(pair, "user"), words(pair, "assistant"), *(media if number == 0 else ()))
    return tuple(turns)


def _sources(value: Any) -> list[Any]:
    """Pictures as paths (checked), bytes, or decoded objects."""
    if value is None or value == "":
        return []
    return [_source(one) for one in value] if isinstance(value, list) else [_source(value)]


def _source(value: Any) -> Any:
    if isinstance(value, Mapping):
        found = value.get("bytes")
        value = found if found is not None else value.get("path")
    if isinstance(value, str):
        check_path(value)
        return value
    if isinstance(value, bytes) or hasattr(value, "convert"):
        return value
    expected = "a path, bytes, {bytes, path} or a picture"
    raise DataError(f"a picture is {repr(value)[:60]}", expected=expected, fix="data.columns.image=NAME")
