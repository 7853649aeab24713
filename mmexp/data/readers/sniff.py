"""What a file or folder holds, told from its content."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmexp.data.files import SteadyFile, missing
from mmexp.data.jsontext import not_utf8
from mmexp.data.readers.alpaca import InstructionsConfig
from mmexp.data.readers.coco import CocoCaptionsConfig
from mmexp.data.readers.gqa import GqaConfig
from mmexp.data.readers.imagefolder import METADATA, ImageFolderConfig
from mmexp.data.readers.internvl import InternVlMixtureConfig
from mmexp.data.readers.lavis import LavisCaptionsConfig, LavisVqaConfig
from mmexp.data.readers.llava import LlavaJsonConfig
from mmexp.data.readers.messages import MessagesConfig
from mmexp.data.readers.minigpt4 import MiniGpt4CaptionsConfig
from mmexp.data.readers.pope import PopeConfig
from mmexp.data.readers.qwen_vl import QwenVlJsonConfig
from mmexp.data.readers.refcoco import RefCocoConfig, is_pickle
from mmexp.data.readers.scienceqa import ScienceQaConfig
from mmexp.data.readers.sharegpt import ShareGptConfig
from mmexp.data.readers.tables import TableConfig
from mmexp.data.readers.tars import TarsConfig
from mmexp.data.readers.textvqa import TextVqaConfig
from mmexp.data.readers.vqa import VqaV2Config
from mmexp.data.sources import iterate_members, iterate_rows, outline
from mmexp.errors import DataError

_LOOKED_AT = 50
"""Rows that are looked at; all of them must be of one format."""
_LONGEST_LINE_BYTES = 1 << 24
"""A first line longer than this is taken for a whole file without line breaks."""


@dataclass(frozen=True)
class Found:
    """A format and why it is the one."""

    reader: Callable[..., Any]
    name: str
    reason: str
    settings: tuple[tuple[str, Any], ...] = ()


def sniff(path: str) -> Found:
    """The format of a path.

    Raises:
        DataError: there is nothing, or nothing that is known.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _folder(place)
    if not place.exists():
        if any(mark in path for mark in "{*?["):
            return Found(TarsConfig, "webdataset tars", "the path is a pattern of files")
        raise missing(place, "the data", (".json", ".jsonl", ".csv", ".parquet", ".tar"))
    file = SteadyFile(place, "the data")
    head = file.read(0, min(file.size, 512))
    if head[257:262] == b"ustar":
        return Found(TarsConfig, "webdataset tars", "it is a tar")
    if head[:4] == b"PAR1":
        return Found(TableConfig, "a parquet table", "it begins with PAR1")
    if head[:2] == b"\x1f\x8b":
        raise DataError(
            "a compressed file", expected="plain JSON, CSV, parquet or tar", where=path, fix="gunzip it first"
        )
    if is_pickle(file):
        return _refs(place)
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first in (b"[", b"{"):
        return _json(file, first == b"[")
    if not head.strip():
        raise _unknown(path, "an empty file", [])
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.start) from error
    line = head.split(b"\n")[0].decode("utf-8-sig", errors="replace").strip()
    if "," in line and place.suffix.lower() == ".csv":
        return Found(ImageFolderConfig, "a CSV table", f"its header is {line[:60]}")
    raise _unknown(path, f"a file that begins with {line[:40]!r}", [])


def _refs(pickle: Path) -> Found:
    """RefCOCO's pickle, if COCO's boxes lie beside it as they are published. Raises DataError without them."""
    instances = pickle.parent / "instances.json"
    if instances.is_file():
        reason = f"it is a pickle, with {instances.name} beside it"
        return Found(RefCocoConfig, "RefCOCO refs", reason, (("instances", str(instances)),))
    raise DataError(
        "a pickle, which could run code",
        expected="JSON, CSV, parquet or tar, or RefCOCO's refs with instances.json beside them",
        where=str(pickle),
        fix="data=refcoco data.path=REFS data.instances=instances.json, which runs no code from it",
    )


def _folder(folder: Path) -> Found:
    """The format of a folder, by what lies in it."""
    names = {entry.name for entry in folder.iterdir()}
    choices = []
    if {"state.json", "dataset_info.json"} <= names or "dataset_dict.json" in names:
        choices.append(Found(TableConfig, "a saved Hugging Face dataset", "the folder has dataset_info.json"))
    if found := sorted(names & set(METADATA)):
        choices.append(Found(ImageFolderConfig, "an image folder", f"it has {found[0]}"))
    if any(name.endswith((".tar", ".tgz", ".tar.gz")) for name in names):
        choices.append(Found(TarsConfig, "webdataset tars", "the folder has tars"))
    if not choices and any(True for _ in islice(folder.rglob("*.parquet"), 1)):
        choices.append(Found(TableConfig, "parquet tables", "the folder has parquet files"))
    if not choices and any(True for _ in islice(folder.rglob("*.tar"), 1)):
        choices.append(Found(TarsConfig, "webdataset tars", "the folders below have tars"))
    if len(choices) == 1:
        return choices[0]
    inside = ", ".join(sorted(names)[:8]) or "nothing"
    json_file = next((name for name in sorted(names) if name.endswith((".json", ".jsonl"))), None)
    if choices:
        listed = " and ".join(f"{choice.name} ({choice.reason})" for choice in choices)
        raise DataError(f"a folder that could be {listed}", expected="one kind of data", where=str(folder),
                        fix="choose the reader yourself: data=tars, data=table or data=imagefolder")  # fmt: skip
    fix = f"data.path={folder / json_file}" if json_file else None
    expected = "tars, parquet, a saved Hugging Face dataset, or pictures with metadata.csv or metadata.jsonl"
    raise DataError(f"a folder with {inside}", expected=expected, where=str(folder), fix=fix)


def _json(file: SteadyFile, is_list: bool) -> Found:
    """The format of a JSON or JSONL file."""
    if is_list or _has_lines(file):
        rows = [row.value for row in islice(iterate_rows(file), _LOOKED_AT)]
        return _agreed(file.path, rows)
    seen: dict[str, Any] = {}
    for key, value in outline(file):
        seen[key] = value
        if (found := _object(seen, file)) is not None:
            return found
    entry = next((row.value for row in islice(iterate_members(file), 1)), None)
    described = f"an object with {', '.join(list(seen)[:6]) or 'nothing'}"
    if isinstance(entry, dict):
        for keys, reader, name in _MEMBERS:
            if keys <= set(entry):
                return Found(reader, name, f"an object whose members have {', '.join(sorted(keys))}")
        described += f"; the first holds {', '.join(list(entry)[:8])}"
    raise _unknown(file.path, described, list(seen))


_MEMBERS: Sequence[tuple[set[str], Callable[..., Any], str]] = (
    ({"question", "answer", "imageId"}, GqaConfig, "GQA questions"),
    ({"question", "choices", "answer"}, ScienceQaConfig, "ScienceQA problems"),
    ({"annotation"}, InternVlMixtureConfig, "an InternVL mixture"),
)


def _object(seen: dict[str, Any], file: SteadyFile) -> Found | None:
    """The format of an object of lists, as soon as it is clear; lists are known by their first element."""
    firsts = {
        key: set(value[0])
        for key, value in seen.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    if {"image_id", "caption"} <= firsts.get("annotations", set()):
        if _has_images(seen, file):
            return Found(CocoCaptionsConfig, "COCO captions", "`images`, and `annotations` with captions")
        return Found(MiniGpt4CaptionsConfig, "MiniGPT-4 captions", "`annotations` with captions and no `images`")
    if {"question_id", "question"} <= firsts.get("questions", set()):
        found = _annotations_beside(Path(file.path))
        return Found(VqaV2Config, "VQAv2", f"`questions`, answers in {found.name}", (("annotations", str(found)),))
    if {"question", "image_id"} <= firsts.get("data", set()):
        return Found(TextVqaConfig, "TextVQA", "`data` with questions")
    return None


def _has_images(seen: dict[str, Any], file: SteadyFile) -> bool:
    return "images" in seen or any(key == "images" for key, _ in outline(file))


def _annotations_beside(questions: Path) -> Path:
    """The answers that belong to a questions file, by VQAv2's way of naming. Raises DataError without them."""
    name = questions.name
    guesses = [
        name.replace("questions", "annotations"),
        name.replace("OpenEnded_", "").replace("questions", "annotations"),
    ]
    for guess in guesses:
        if guess != name and (questions.parent / guess).is_file():
            return questions.parent / guess
    raise DataError(
        "VQAv2 questions without their answers",
        expected=f"{' or '.join(sorted(set(guesses)))} beside them",
        where=str(questions),
        fix="data=vqa_v2 data.path=QUESTIONS data.annotations=ANNOTATIONS",
    )


_ROW_FORMATS: Sequence[tuple[set[str], Callable[..., Any], str]] = (
    ({"messages"}, MessagesConfig, "chat messages"),
    ({"question_id", "image", "text", "label"}, PopeConfig, "POPE questions"),
    ({"img_id", "sents", "bbox"}, RefCocoConfig, "RefCOCO expressions"),
    ({"instruction", "output"}, InstructionsConfig, "instructions (Alpaca)"),
    ({"query", "response"}, InstructionsConfig, "instructions (query and response)"),
    ({"image", "question", "answer"}, LavisVqaConfig, "LAVIS questions"),
    ({"image", "caption"}, LavisCaptionsConfig, "LAVIS captions"),
    ({"file_name"}, ImageFolderConfig, "image folder metadata"),
)
_QWEN_MARK = re.compile(r"<img>[^<]+</img>|<box>\(")
"""Of Qwen-VL; the tag of a web page has no end, and InternVL writes boxes in brackets."""
_ROW_KEYS = set().union(*(keys for keys, _, _ in _ROW_FORMATS)) | {"conversations"}


def _row(row: Any) -> tuple[Callable[..., Any], str] | None:
    """Reader and name of the format of one row, or None."""
    if not isinstance(row, dict):
        return None
    turns = row.get("conversations")
    if isinstance(turns, list):
        said = [turn for turn in turns if isinstance(turn, dict)]
        has_field = bool(row.get("image") or row.get("images"))
        if not has_field and any(_QWEN_MARK.search(str(turn.get("value"))) for turn in said):
            return QwenVlJsonConfig, "Qwen-VL conversations"
        speakers = {turn.get("from") for turn in said}
        if {"images", "tools", "videos", "audios"} & set(row) or speakers & {"observation", "function_call"}:
            return ShareGptConfig, "ShareGPT conversations"
        return LlavaJsonConfig, "LLaVA conversations"
    return next(((reader, name) for keys, reader, name in _ROW_FORMATS if keys <= set(row)), None)


def _agreed(path: str, rows: Sequence[Any]) -> Found:
    """The one format of all rows; LLaVA rows go along with richer conversations where those can hold them."""
    kinds: dict[Any, tuple[str, int]] = {}
    for number, row in enumerate(rows):
        kind = _row(row)
        kinds.setdefault(kind[0] if kind else None, (kind[1] if kind else "unknown", number))
    if len(kinds) == 2 and LlavaJsonConfig in kinds:
        (richer,) = kinds.keys() - {LlavaJsonConfig}
        has_fields = any(isinstance(row, dict) and row.get("image") for row in rows)  # which Qwen-VL's reader refuses
        if richer is ShareGptConfig or (richer is QwenVlJsonConfig and not has_fields):
            kinds = {richer: kinds[richer]}
    if len(kinds) == 1 and None not in kinds:
        reader, (name, _) = next(iter(kinds.items()))
        keys = ", ".join(list(rows[0])[:6])
        return Found(reader, name, f"{len(rows)} rows were looked at, the first has {keys}")
    if len(kinds) > 1:
        listed = "; ".join(f"row {number}: {name}" for name, number in kinds.values())
        raise DataError(f"rows of different formats ({listed})", expected="one format", where=path,
                        fix="split the file, or choose the reader yourself: data=llava_json")  # fmt: skip
    first = rows[0] if rows else None
    seen = f"rows with {', '.join(list(first)[:8])}" if isinstance(first, dict) else f"rows such as {repr(first)[:60]}"
    raise _unknown(path, seen if rows else "no row", list(first) if isinstance(first, dict) else [])


def _unknown(path: str, seen: str, keys: list[str]) -> DataError:
    """The error for content that no reader knows, with the format that has most of its keys."""
    formats = [
        ({"conversations"}, "LLaVA, ShareGPT or Qwen-VL conversations"),
        *((k, name) for k, _, name in _ROW_FORMATS),
    ]
    formats += [(k, name) for k, _, name in _MEMBERS]
    formats += [({"images", "annotations"}, "COCO captions"), ({"questions"}, "VQAv2"), ({"data"}, "TextVQA")]
    near, name = max(formats, key=lambda entry: len(entry[0] & set(keys)) / len(entry[0]))
    lacking = near - set(keys)
    fix = f"nearest is {name}, which also needs {', '.join(sorted(lacking))}" if lacking < near else None
    tried = "; ".join(f"{name} ({', '.join(sorted(k))})" for k, name in formats)
    return DataError(seen, expected=f"one of: {tried}; a tar, a parquet table, a CSV table", where=path, fix=fix)


def _has_lines(file: SteadyFile) -> bool:
    """Whether a file that begins with an object has one row a line, told by its first line."""
    with open(file.path, "rb") as lines:
        while (line := lines.readline(_LONGEST_LINE_BYTES)) and not line.strip():
            pass
        if len(line) == _LONGEST_LINE_BYTES:
            return False
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):  # whoever reads the file names what is wrong with it
            return False
        goes_on = any(rest.strip() for rest in islice(lines, 3))
        return goes_on or (isinstance(value, dict) and bool(set(value) & _ROW_KEYS))
