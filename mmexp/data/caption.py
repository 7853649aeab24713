"""Long descriptions for MiniGPT-4's second stage: pictures are described, texts checked, rewritten, and checked again.

What is done stands in a work file, row by row, so that a killed command goes on where it was.
"""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmexp.contracts import Dataset, Medium, Sample
from mmexp.data.flaws import flaws_of
from mmexp.data.rewrite import Rewriter, Rewritten
from mmexp.data.workfile import WorkFile
from mmexp.errors import DataError
from mmexp.prompt import BadMediaError, describe, load_image
from mmexp.whole import write_bytes, write_json, write_json_lines

ANNOTATIONS, REJECTED, REPORT, WORK = "filter_cap.json", "rejected.jsonl", "report.json", "work.jsonl"
REFUSED = {
    "no_picture": "the row has no picture, or several",
    "same_picture": "an earlier row has the same picture",
    "unreadable": "the picture cannot be read",
    "not_rewritten": "the rewriter gave no text",
}
"""Why a row is left out besides the flaws of its text."""
_FAILURES_IN_A_ROW = 3
_JPEG = b"\xff\xd8\xff"
_AS_IT_WAS = "already correct"
"""What a rewriter may say instead of giving a right paragraph back."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the model says of one picture."""

    text: str
    num_tokens: int
    is_cut: bool
    """Whether its last answer was as long as the limit."""
    is_continued: bool = False
    """Whether it was asked to continue."""


Describe = Callable[[Sequence[tuple[str, Medium]]], list[Description]]
"""From ids and pictures to descriptions, in order."""


@dataclass
class Captioning:
    """One dataset on its way to `filter_cap.json` and `image/`.

    Args:
        dataset: Samples with one picture each.
        rows: Which of them; see `draw_rows`.
        work: What has been done.
        out: The folder.
    """

    dataset: Dataset
    rows: Sequence[int]
    work: WorkFile
    out: Path
    failures: dict[int, str] = field(default_factory=dict)
    """Rows that the rewriter gave no text for in this process; they are asked again by the next one."""

    def describe(self, speak: Describe, batch_size: int) -> Iterator[int]:
        """Describes every row that is not described yet; yields how many are."""
        seen = {entry["picture"] for entry in self.work.entries.values() if entry.get("picture")}
        pending = [row for row in self.rows if row not in self.work.entries]
        done = len(self.rows) - len(pending)
        for start in range(0, len(pending), batch_size):
            chunk = pending[start : start + batch_size]
            entries = [self._look(row, seen) for row in chunk]
            asked = [entry for entry, _ in entries if "refused" not in entry]
            said = speak([(entry["id"], medium) for entry, medium in entries if medium is not None])
            for entry, description in zip(asked, said, strict=True):
                entry |= _told(description)
            self.work.append([entry for entry, _ in entries])
            done += len(chunk)
            yield done

    def to_rewrite(self, everything: bool) -> list[int]:
        """Rows with flaws (or all that were described) that have not been rewritten."""
        entries = ((row, self.work.entries.get(row, {})) for row in self.rows)
        return [row for row, entry in entries if "caption" in entry and "rewritten" not in entry
                and (everything or entry["flaws"])]  # fmt: skip

    def rewrite(self, rewriter: Rewriter, everything: bool = False) -> Iterator[int]:
        """Has rows rewritten; yields how many were asked for.

        Raises:
            DataError: several in a row failed. What was rewritten before is kept.
        """
        pending, in_a_row = self.to_rewrite(everything), 0
        for start in range(0, len(pending), rewriter.batch_size):
            chunk = pending[start : start + rewriter.batch_size]
            answers = rewriter.rewrite([self.work.entries[row]["caption"] for row in chunk])
            found = list(zip(chunk, answers, strict=True))
            self.work.append([self._mended(row, answer) for row, answer in found if answer.failure is None])
            for row, answer in found:
                in_a_row = 0 if answer.failure is None else in_a_row + 1
                if answer.failure is not None:
                    self.failures[row] = answer.failure
            if in_a_row >= _FAILURES_IN_A_ROW:
                raise DataError(f"{in_a_row} texts in a row were not rewritten: {self.failures[chunk[-1]]}",
                                where="rewrite", fix="mend that, then the same command goes on; rewrite=none leaves"
                                " them out")  # fmt: skip
            yield start + len(chunk)

    def finish(self) -> dict[str, Any]:
        """Writes pictures, `filter_cap.json`, `rejected.jsonl` and `report.json`; returns the report.

        Raises:
            DataError: not one description passed.
        """
        verdicts = {row: self._verdict(row) for row in self.rows}
        kept = [row for row, reasons in verdicts.items() if not reasons]
        rejected = [self._rejection(row, reasons) for row, reasons in verdicts.items() if reasons]
        write_json_lines(self.out / REJECTED, rejected)
        report = self._report(verdicts)
        write_json(self.out / REPORT, report)
        if not kept:
            (self.out / ANNOTATIONS).unlink(missing_ok=True)
            raise DataError(f"none of {len(self.rows)} descriptions passed", where=str(self.out / REJECTED),
                            fix="rewrite=endpoint or rewrite=local, or a run that trained longer")  # fmt: skip
        (self.out / "image").mkdir(exist_ok=True)
        for row in kept:
            self._write_picture(row)
        annotations = [{"image_id": str(row), "caption": _final(self.work.entries[row])} for row in kept]
        write_json(self.out / ANNOTATIONS, {"annotations": annotations})
        return report

    def _look(self, row: int, seen: set[str]) -> tuple[dict[str, Any], Medium | None]:
        """The entry of a row, and its picture where it can be described."""
        sample = self.dataset[row]
        entry: dict[str, Any] = {"row": row, "id": sample.id}
        media = [medium for turn in sample.turns for medium in turn.media]
        if len(media) != 1 or media[0].modality != "image":
            return entry | {"refused": "no_picture", "detail": f"{len(media)} media"}, None
        source = media[0].source
        if isinstance(source, str):
            if source in seen:
                return entry | {"refused": "same_picture", "detail": source}, None
            seen.add(source)
            entry["picture"] = source
        try:
            load_image(source, describe(sample))
        except BadMediaError as error:
            return entry | {"refused": "unreadable", "detail": error.render()}, None
        return entry, media[0]

    def _mended(self, row: int, answer: Rewritten) -> dict[str, Any]:
        entry = self.work.entries[row]
        if _AS_IT_WAS in answer.text.lower():
            return {"row": row, "rewritten": entry["caption"], "new_flaws": entry["flaws"]}
        return {"row": row, "rewritten": answer.text, "new_flaws": flaws_of(answer.text, answer.is_cut)}

    def _verdict(self, row: int) -> list[str]:
        """Why a row is rejected; empty for one that is kept."""
        entry = self.work.entries[row]
        if "refused" in entry:
            return [entry["refused"]]
        if row in self.failures and entry["flaws"]:
            return ["not_rewritten", *entry["flaws"]]
        return entry.get("new_flaws", entry["flaws"])

    def _rejection(self, row: int, reasons: list[str]) -> dict[str, Any]:
        entry = self.work.entries[row]
        shown = {key: entry[key] for key in ("id", "picture", "caption", "rewritten", "detail") if key in entry}
        failure = {"detail": self.failures[row]} if row in self.failures else {}
        return {"row": row, "reasons": reasons, **shown, **failure}

    def _report(self, verdicts: Mapping[int, list[str]]) -> dict[str, Any]:
        entries = {row: self.work.entries[row] for row in self.rows}
        kept = [row for row, reasons in verdicts.items() if not reasons]
        return {
            "rows": len(entries),
            "described": sum("caption" in entry for entry in entries.values()),
            "continued": sum(bool(entry.get("continued")) for entry in entries.values()),
            "flagged": dict(Counter(flaw for entry in entries.values() for flaw in entry.get("flaws", []))),
            "rewritten": sum("rewritten" in entry for entry in entries.values()),
            "kept": len(kept),
            "kept_after_rewriting": sum("rewritten" in entries[row] for row in kept),
            "rejected": dict(Counter(reason for reasons in verdicts.values() for reason in reasons)),
        }

    def _write_picture(self, row: int) -> None:
        """A JPEG keeps its bytes; another picture becomes one."""
        target = self.out / "image" / f"{row}.jpg"
        if not target.exists():
            sample = self.dataset[row]
            write_bytes(target, _jpeg(sample))


def draw_rows(total: int, limit: int | None, seed: int) -> list[int]:
    """`limit` rows of `total` in their order, drawn by `seed`; all of them without a limit."""
    if limit is None or limit >= total:
        return list(range(total))
    return sorted(random.Random(seed).sample(range(total), limit))


def _told(description: Description) -> dict[str, Any]:
    flaws = flaws_of(description.text, description.is_cut)
    return {"caption": description.text, "flaws": flaws, "num_tokens": description.num_tokens,
            "continued": description.is_continued}  # fmt: skip


def _final(entry: Mapping[str, Any]) -> str:
    return entry.get("rewritten", entry["caption"])


def _jpeg(sample: Sample) -> bytes:
    source: Any = next(medium.source for turn in sample.turns for medium in turn.media)
    data = Path(source).read_bytes() if isinstance(source, str) else source
    if isinstance(data, (bytes, bytearray, memoryview)) and bytes(data[:3]) == _JPEG:
        return bytes(data)
    buffer = io.BytesIO()
    load_image(source, describe(sample)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
