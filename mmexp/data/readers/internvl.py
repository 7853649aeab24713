"""InternVL's mixture file: names of data sets with folder, annotation and how often each one is repeated."""

from __future__ import annotations

import bisect
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from mmexp.contracts import Dataset, Hinted, Sample
from mmexp.data.readers.llava import LlavaJsonConfig
from mmexp.data.sources import as_file, iterate_members
from mmexp.errors import DataError

log = logging.getLogger(__name__)
_KNOWN = {"root", "annotation", "repeat_time", "length", "data_augment", "max_dynamic_patch", "min_dynamic_patch"}


@dataclass(frozen=True, kw_only=True)
class InternVlMixtureConfig:
    """An object of name to `root`, `annotation` (JSONL in LLaVA's form) and `repeat_time`.

    A part with `repeat_time` 2.5 is read twice and then its first half again; one with 0.3 gives its first 30 %. The
    parts follow each other; the sampler mixes them. `length` is compared with the rows there are. The fields
    `data_augment` and `*_dynamic_patch` concern the processor: they are named in the log and have no effect here.

    Source: OpenGVLab/InternVL, internvl_chat (data preparation); its training refuses fractions above one.
    """

    path: str
    data_root: str | None = None
    """Folder that relative `root` and `annotation` start from; null for the working folder, as InternVL has it."""
    name: str | None = None
    """Unused by the rows, which carry the name of their part; for logs."""

    def parts(self) -> list[tuple[LlavaJsonConfig, float]]:
        """The data sets and how often each one is read.

        Raises:
            DataError: the file is missing or broken, or an entry has no annotation or no usable number.
        """
        file, found = as_file(self.path, "the mixture file"), []
        base = Path(self.data_root).expanduser() if self.data_root else Path()
        for row in iterate_members(file):
            where = f"{file.path}:{row.line} ({row.key})"
            entry = row.value if isinstance(row.value, dict) else {}
            if not isinstance(entry.get("annotation"), str) or not isinstance(entry.get("root", ""), str):
                raise DataError(f"an entry is {repr(row.value)[:80]}", expected="{root, annotation, ...}", where=where)
            times = entry.get("repeat_time", 1)
            if isinstance(times, bool) or not isinstance(times, int | float) or times <= 0:
                raise DataError(f"`repeat_time` is {times!r}", expected="a number above 0", where=where)
            _report(entry, where)
            annotation, root = str(base / entry["annotation"]), str(base / entry.get("root", ""))
            found.append((LlavaJsonConfig(path=annotation, image_root=root, name=row.key), float(times)))
            _check_length(entry.get("length"), annotation, where)
        if not found:
            raise DataError("no data set", expected="at least one entry", where=file.path)
        return found

    def build(self) -> RepeatedParts:
        """All parts, each one read and checked."""
        return RepeatedParts([(part.build(), times) for part, times in self.parts()])

    def build_tolerant(self) -> tuple[RepeatedParts, list[DataError]]:
        """As `build`; rows that cannot be used are left out and told of. Raises DataError as `parts`."""
        opened = [(part.build_tolerant(), times) for part, times in self.parts()]
        errors = [error for (_, errors), _ in opened for error in errors]
        return RepeatedParts([(rows, times) for (rows, _), times in opened]), errors


class RepeatedParts(Dataset):
    """Data sets one after the other, each read a whole or broken number of times.

    Args:
        parts: Data sets with the number of times.
    """

    def __init__(self, parts: Sequence[tuple[Dataset, float]]) -> None:
        self._parts = [part for part, _ in parts]
        self._sizes = [min(len(part), 1) and max(1, int(len(part) * times + 1e-9)) for part, times in parts]
        self._ends = list(accumulate(self._sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = bisect.bisect_right(self._ends, index)
        part = self._parts[number]
        round_, place = divmod(index - (self._ends[number] - self._sizes[number]), len(part))
        sample = part[place]
        return replace(sample, id=f"{sample.id}~{round_}") if round_ else sample

    def hints(self) -> Any:
        """numpy int32[rows]; see `contracts.Hinted`. Raises TypeError when a part has none."""
        import numpy as np

        pieces = []
        for part, size in zip(self._parts, self._sizes, strict=True):
            if not isinstance(part, Hinted):
                raise TypeError(f"{type(part).__name__} has no length hints")
            pieces.append(np.resize(part.hints(), size))
        return np.concatenate(pieces)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the parts' fingerprints and sizes."""
        prints = [getattr(part, "fingerprint", None) for part in self._parts]
        return hashlib.sha256(repr((prints, self._sizes)).encode()).hexdigest()


def _report(entry: dict[str, Any], where: str) -> None:
    if without_effect := sorted(set(entry) & {"data_augment", "max_dynamic_patch", "min_dynamic_patch"}):
        log.info("%s: %s is for the processor and has no effect here", where, ", ".join(without_effect))
    if unknown := sorted(set(entry) - _KNOWN):
        log.warning("%s: %s is not known and has no effect", where, ", ".join(unknown))


def _check_length(length: Any, annotation: str, where: str) -> None:
    """A warning when a JSONL file has other than the stated number of lines, which only counts rows for a sampler."""
    if isinstance(length, int) and os.path.isfile(annotation) and annotation.endswith(".jsonl"):
        with open(annotation, "rb") as lines:
            found = sum(1 for line in lines if line.strip())
        if found != length:
            log.warning("%s: `length` is %d, the file has %d rows; the file is right", where, length, found)
