"""The record of a run: metrics.jsonl, a line for each record, and the same as metrics.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmexp.whole import write_text

VALIDATION = "val/"
"""Begins the names of what benchmarks found."""


def line_of(record: Mapping[str, float]) -> str:
    """A record as a line, numbers with six digits."""
    return json.dumps({key: _short(value) for key, value in record.items()}) + "\n"


def write_csv(jsonl: Path) -> None:
    """metrics.jsonl as metrics.csv, one column for every name that occurs."""
    rows = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with jsonl.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def drop_after(file: Path, step: int) -> None:
    """Removes records of steps that a resumed run is about to do again."""
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _parsed(line).get("step", float("inf")) <= step]
        if len(kept) != len(lines):
            write_text(file, "".join(f"{line}\n" for line in kept))


def has_validation(file: Path, step: int) -> bool:
    """Whether what benchmarks found at a step stands there."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return any(_is_validation(_parsed(line), step) for line in lines)


def put_validation(file: Path, figures: Mapping[str, float], step: int) -> None:
    """Adds what benchmarks found at the end of a run, in place of what an earlier try has added."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    kept = [f"{line}\n" for line in lines if not _is_validation(_parsed(line), step)]
    write_text(file, "".join([*kept, line_of({"step": step, **figures})]))
    write_csv(file)


def _is_validation(record: Mapping[str, Any], step: int) -> bool:
    return record.get("step") == step and any(name.startswith(VALIDATION) for name in record)


def _parsed(line: str) -> dict[str, Any]:
    """Empty for a line that was cut off."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")
