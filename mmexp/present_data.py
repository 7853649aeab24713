"""What the commands on data show: tables for the terminal, and the page of a check."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.data import MixtureConfig
from mmexp.data.caption import REFUSED
from mmexp.data.flaws import FLAWS
from mmexp.data.inspect import KINDS, Inspection, Problem
from mmexp.data.mixture import Part
from mmexp.errors import MmexpError
from mmexp.report import Example, Kind, write_data_page

if TYPE_CHECKING:
    from mmexp.data.fetch import Found
    from mmexp.engine.fill import Filled

NUM_EXAMPLES = 12
"""Rows shown of each kind of problem."""
_EDGES = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
Rows = list[dict[str, Any]]


def cache_rows(filled: Filled) -> Rows:
    """What filling the feature cache came to."""
    speed = f"{filled.num_encoded / max(filled.seconds, 1e-9):.1f} a second" if filled.num_encoded else "-"
    facts = {
        "pictures": f"{filled.num_media:,}",
        "were there already": f"{filled.num_hits:,}",
        "encoded": f"{filled.num_encoded:,}",
        "cannot be read": f"{filled.num_unreadable:,}",
        "neither files nor bytes": f"{filled.num_unnamed:,}",
        "written": f"{filled.num_written:,} pictures, {filled.bytes_written:,} bytes",
        "seconds": f"{filled.seconds:.1f} ({speed})",
    }
    return [{"what": name, "value": value} for name, value in facts.items()]


def problem_rows(report: Inspection) -> Rows:
    """One line for each kind of problem, gravest first, with the first row that has it."""
    rows = []
    for kind, count in report.counts.items():
        severity, meaning = KINDS[kind]
        first = next(problem for problem in report.problems if problem.kind == kind)
        example = f"{first.id}: {first.detail.splitlines()[0]}"
        rows.append({"problem": kind, "rows": count, "is": severity, "meaning": meaning, "for example": example})
    return rows


def page_of(report: Inspection, title: str, path: Path) -> Path:
    """Writes the page of a check."""
    kinds = []
    for name, count in report.counts.items():
        severity, meaning = KINDS[name]
        examples = [_example(problem) for problem in report.problems if problem.kind == name][:NUM_EXAMPLES]
        kinds.append(Kind(name=name, meaning=meaning, grave=severity == "error", count=count, examples=examples))
    facts = {row["what"]: str(row["value"]) for row in totals(report)}
    return write_data_page(path, title, facts, kinds, histograms(report))


def totals(report: Inspection) -> Rows:
    """The sums of a dataset."""
    facts = {
        "rows": report.num_rows,
        "turns": sum(report.num_turns),
        "pictures": sum(report.num_media),
        "rows without a picture": sum(number == 0 for number in report.num_media),
        "tokens": sum(report.lengths),
        "supervised tokens": sum(report.supervised),
        "longest row in tokens": max(report.lengths, default=0),
        "median row in tokens": round(statistics.median(report.lengths or [0])),
    }
    parts = {f"rows of {name}": count for name, count in report.datasets.items()} if len(report.datasets) > 1 else {}
    return [{"what": name, "value": f"{value:,}"} for name, value in {**facts, **parts}.items()]


def histograms(report: Inspection) -> dict[str, dict[str, int]]:
    """Per title how many rows (pictures) lie in which range."""
    shapes = Counter(_shape(*size) for size in report.sizes.elements())
    return {
        "supervised tokens of a row": ranges(report.supervised),
        "tokens of a row, slots included": ranges(report.lengths),
        "turns of a row": ranges(report.num_turns),
        "pictures of a row": {str(number): count for number, count in sorted(Counter(report.num_media).items())},
        "longer side of a picture in pixels": ranges([max(size) for size in report.sizes.elements()]),
        "shape of a picture": dict(shapes.most_common()),
    }


def stat_tables(report: Inspection) -> dict[str, Rows]:
    """Totals and histograms as tables."""
    tables = {"totals": totals(report)}
    for title, counts in histograms(report).items():
        if counts:
            tables[title] = [{"range": name, "rows": count} for name, count in counts.items()]
    return tables


def ranges(numbers: Sequence[int]) -> dict[str, int]:
    """How many of the numbers lie in ranges such as `9-16`; empty ranges between others stay."""
    bounds = [(low + 1, high) for low, high in pairwise(_EDGES)]
    names = ["0", *(f"{low}-{high}" for low, high in bounds), f">{_EDGES[-1]}"]
    counts = [0] * len(names)
    for number in numbers:
        counts[sum(number > edge for edge in _EDGES)] += 1
    used = [index for index, count in enumerate(counts) if count]
    return {names[index]: counts[index] for index in range(used[0], used[-1] + 1)} if used else {}


def mixture_rows(config: MixtureConfig) -> tuple[Rows, list[MmexpError]]:
    """The parts of a mixture with rows, shares and samples of an epoch, and why parts could not be opened.

    Nothing is rendered or downloaded for it; shares that follow from rows are unknown while a part is missing.
    """
    parts: dict[str, Part] = {}
    errors: list[MmexpError] = []
    for name in config.parts:
        try:
            parts[name] = _as_it_is(config).open(name)
        except MmexpError as error:
            errors.append(error)
    quotas = dict(zip(parts, config.mix(list(parts.values())).quotas(), strict=True)) if not errors else {}
    rows = []
    for name, part in config.parts.items():
        title = str(getattr(part.data, "path", "") or type(part.data).__name__)
        row = {"part": name, "data": title, "subset": part.subset or "all", "weight": f"{part.weight:g}"}
        row["rows"] = f"{len(parts[name].dataset):,}" if name in parts else "not read"
        row["of an epoch"] = f"{round(float(quotas[name])):,}" if quotas else "?"
        rows.append(row | {"share": f"{float(quotas[name] / sum(quotas.values())):.1%}" if quotas else "?"})
    return rows, errors


def _as_it_is(config: MixtureConfig) -> MixtureConfig:
    """The mixture of files that are here: opening it makes none."""
    changed = {}
    for name, part in config.parts.items():
        data: Any = part.data
        changed[name] = replace(part, data=replace(data, prepare=None)) if getattr(data, "prepare", None) else part
    return replace(config, parts=changed)


def found_line(found: Found) -> str:
    """How one need stands: `missing  llm: lmsys/vicuna-7b-v1.5, about 13.5 GB, into the Hugging Face cache`."""
    need = found.need
    place = str(need.file or need.folder or "the Hugging Face cache")
    if found.is_here:
        return f"here     {need.what}: {need.source or place}"
    size = "size unknown" if found.num_bytes is None else f"{'about ' * found.is_estimate}{_size(found.num_bytes)}"
    remark = f" ({found.remark})" if found.remark and not found.is_offline else ""
    origin = ", ".join([need.source, *need.files]) if need.source else ", ".join(need.files)
    from_page = f"{origin}, {size}, " if origin and need.page else ""
    what = f"{origin}, {size}, into {place}" if need.source else f"{from_page}into {place}" if from_page else place
    return f"missing  {need.what}: {what}{remark}"


def _example(problem: Problem) -> Example:
    name = f"{problem.dataset} {problem.id}".strip()
    return Example(id=name, detail=problem.detail, text=problem.text, file=problem.file)


def _shape(width: int, height: int) -> str:
    ratio = width / height
    return "square" if 0.95 <= ratio <= 1.05 else "wide" if ratio > 1 else "tall"


def _size(num_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def caption_rows(report: Mapping[str, Any]) -> Rows:
    """The report of `mmexp.data caption`: one line a figure, and one for each flaw and reason with its meaning."""
    meanings = FLAWS | REFUSED
    rows = [{"what": name.replace("_", " "), "rows": value, "meaning": ""} for name, value in report.items()
            if isinstance(value, int)]  # fmt: skip
    for group in ("flagged", "rejected"):
        rows += [{"what": f"{group}: {name}", "rows": count, "meaning": meanings[name]}
                 for name, count in report[group].items()]  # fmt: skip
    return rows
