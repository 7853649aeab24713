"""webdataset tars: pictures with captions (CC3M, LAION, SBU, MiniGPT-4) or with rows of another format."""

from __future__ import annotations

import bisect
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from mmexp.contracts import Dataset, Medium, Sample
from mmexp.data.jsontext import decode
from mmexp.data.published import Published
from mmexp.data.readers.columns import with_sources
from mmexp.data.readers.llava import LlavaJsonConfig
from mmexp.data.readers.messages import MessagesConfig
from mmexp.data.readers.parts import check_limit, exchange, others, words
from mmexp.data.readers.prompts import BRIEF_PROMPTS, prompt_for
from mmexp.data.readers.regions import with_shares
from mmexp.data.shards import find_tars, read_manifest, require_counts
from mmexp.data.tarindex import Shard, open_shard
from mmexp.errors import DataError

log = logging.getLogger(__name__)
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
_SHOWN = 5
_NOT_CONTENT = ("path", "name", "limit", "published")


@dataclass(frozen=True, kw_only=True)
class TarsConfig:
    """Tars in which the members of a sample share their name up to the first dot.

    The text of a sample is a caption in `.txt` or in a field of `.json`, or a `.json` that is a whole row of LLaVA
    (`conversations`) or chat messages (`messages`) whose pictures are the members. Nothing is unpacked.
    """

    path: str
    """A tar, a folder, a glob, or a brace pattern such as `{00000..00331}.tar`."""
    name: str | None = None
    """Name in messages and counts; null for the name of the folder, or of the one tar."""
    caption_key: str = "caption"
    """Field of `.json` that holds the caption."""
    prompts: tuple[str, ...] = BRIEF_PROMPTS
    """Instructions that captions take in turn; a template of captions alone leaves them out."""
    incomplete_share: float = 0.0
    """Up to this share of samples without picture or text is left out and counted; more is an error."""
    limit: int | None = None
    """Only the first so many samples."""
    published: Mapping[str, Published] = field(default_factory=dict)
    """Where the files can be had, by the setting that they belong to."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a limit below 1."""
        check_limit(self.limit)

    def build(self) -> TarDataset:
        """Looks up every member; samples are read when they are asked for.

        Raises:
            DataError: a tar is missing, cut, compressed or not what its manifest says, or samples are incomplete.
        """
        tars = find_tars(self.path)
        said = read_manifest(tars, is_whole=Path(self.path).expanduser().is_dir())
        if not said:
            log.info("%s: no manifest.json beside the tars, so a lost sample cannot be noticed", self.path)
        shards = []
        for tar in tars:
            shards.append(open_shard(tar, said.get(tar, {}).get("sha256")))
            require_counts(shards[-1], said.get(tar))
        chosen = [_complete(shard) for shard in shards]
        _require_complete(shards, chosen, self.incomplete_share, self.path)
        if self.limit is not None:
            starts = accumulate((len(rows) for rows in chosen), initial=0)
            chosen = [rows[: max(0, self.limit - start)] for rows, start in zip(chosen, starts, strict=False)]
        return TarDataset(shards, chosen, self, self.name or Path(self.path).stem or "tars")


class TarDataset(Dataset):
    """Samples of tars, at random places and from any number of processes.

    Args:
        shards: The tars with their indices.
        chosen: Per shard the places of its usable samples, numpy int32.
        reader: Settings; part of the fingerprint.
        name: `Sample.dataset`.
    """

    def __init__(self, shards: list[Shard], chosen: list[Any], reader: TarsConfig, name: str) -> None:
        self._shards, self._chosen, self._reader, self.name = shards, chosen, reader, name
        self.shard_sizes: tuple[int, ...] = tuple(len(rows) for rows in chosen)
        """Rows of each shard; see `contracts.Sharded`."""
        self._ends = list(accumulate(self.shard_sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = bisect.bisect_right(self._ends, index)
        shard = self._shards[number]
        row = shard.rows[int(self._chosen[number][index - (self._ends[number - 1] if number else 0)])]
        try:
            return replace(self._sample(shard, row["key"], row["members"], index), dataset=self.name)
        except DataError as error:
            where = error.where or f"{shard.file.path}: sample {row['key']!r} (row {index})"
            raise DataError(error.found, expected=error.expected, where=where, fix=error.fix) from error

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, places and sizes of all members, and of the contents where a manifest has their hash."""
        settings = {key: value for key, value in vars(self._reader).items() if key not in _NOT_CONTENT}
        digest = hashlib.sha256(repr((settings, self.shard_sizes)).encode())
        for shard in self._shards:
            digest.update(f"{shard.file.size} {shard.sha256}".encode())
            digest.update(shard.rows.data)
        return digest.hexdigest()

    def _sample(self, shard: Shard, key: str, members: dict[str, list[int]], index: int) -> Sample:
        row, caption = _text(shard, key, members)
        names = _pictures(members)
        sources = [shard.file.read(*members[name]) for name in names]
        if "conversations" in row or "messages" in row:
            reader = LlavaJsonConfig(path="") if "conversations" in row else MessagesConfig(path="")
            field = "image" if "conversations" in row else "images"
            places = [str(place) for place in _named_order(row.get(field), key, names)]
            sample = with_sources(reader.parse({"id": key, **row, field: places or None}, index), sources)
            return replace(sample, turns=with_shares(sample.turns, f"{shard.file.path}: sample {key!r} (row {index})"))
        if caption is None:
            caption = words(row, self._reader.caption_key)
        turns = exchange(prompt_for(self._reader.prompts, index), caption, *[Medium(source=s) for s in sources])
        return Sample(id=key, turns=turns, meta=others(row, self._reader.caption_key))


def _text(shard: Shard, key: str, members: dict[str, list[int]]) -> tuple[dict[str, Any], str | None]:
    """The row of the `.json` member (empty without one) and the caption of the `.txt` member (None without one)."""
    row, caption = {}, None
    for extension in ("json", "txt"):
        if extension not in members:
            continue
        place = f"{shard.file.path}: {key}.{extension}"
        try:
            text = shard.file.read(*members[extension]).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"byte {error.start} is not UTF-8", expected="UTF-8 text", where=place) from error
        if extension == "txt":
            caption = words({"txt": text}, "txt").strip()
            continue
        row = decode(text.strip() or "null", 0, place, 1)[0]
        if not isinstance(row, dict):
            raise DataError(f"a {type(row).__name__}", expected="an object", where=place)
    return row, caption


def _pictures(members: dict[str, Any]) -> list[str]:
    """The extensions that are pictures, in order: `jpg`, or `0.jpg`, `1.webp`, ..., `10.jpg`."""
    return sorted((name for name in members if name.rsplit(".", 1)[-1] in PICTURES), key=_place)


def _place(name: str) -> tuple[int, str, str]:
    """What orders the pictures of a sample: numbers by value, whatever kind of picture each one is."""
    stem, _, kind = name.rpartition(".")
    return (int(stem), "", kind) if stem.isascii() and stem.isdecimal() else (-1, stem, kind)


def _named_order(named: Any, key: str, names: list[str]) -> list[int]:
    """Places of the pictures in the order that the row gives, where it names exactly the members; else as they are."""
    own = [f"{Path(key).name}.{name}" for name in names]
    if isinstance(named, list) and sorted(map(str, named)) == sorted(own):
        return [own.index(name) for name in named]
    return list(range(len(names)))


def _complete(shard: Shard) -> Any:
    """Places of the samples that have a text, and a picture unless a row of text alone may be meant."""
    import numpy as np

    good = [
        number
        for number in range(len(shard))
        if (members := shard.rows[number]["members"])
        and ("json" in members or ("txt" in members and _pictures(members)))
        and (_pictures(members) or _is_text_row(shard, members))
    ]
    return np.asarray(good, dtype=np.int32)


def _is_text_row(shard: Shard, members: dict[str, list[int]]) -> bool:
    raw = shard.file.read(*members["json"])
    return b'"conversations"' in raw or b'"messages"' in raw


def _require_complete(shards: list[Shard], chosen: list[Any], share: float, path: str) -> None:
    total, lost = sum(map(len, shards)), []
    for shard, rows in zip(shards, chosen, strict=True):
        if len(rows) < len(shard):
            keep = set(rows.tolist())
            lost += [(shard, number) for number in range(len(shard)) if number not in keep]
    if not lost and total:
        return
    shown = "; ".join(
        f"{Path(shard.file.path).name}: {shard.rows[number]['key']} has only {', '.join(shard.rows[number]['members'])}"
        for shard, number in lost[:_SHOWN]
    )
    if len(lost) > share * total or len(lost) == total:
        raise DataError(
            f"{len(lost)} of {total} samples are incomplete: {shown}",
            expected="a picture, and a .txt or .json, in every sample",
            where=path,
            fix="make these shards again, or allow a share of them with data.incomplete_share=0.001",
        )
    log.warning("%s: %d of %d samples are incomplete and left out: %s", path, len(lost), total, shown)
