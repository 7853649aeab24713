"""From what the user named to run directories: single ones, globs, trees of outputs, sweeps."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmexp.compare.record import BrokenRunError, Record, record_of_folder
from mmexp.errors import DataError

_RUN_FILES = ("manifest.json", "config.yaml", "metrics.jsonl")
_NEVER_RUNS = {"cache", "checkpoints", "weights", "predictions", "wandb", "tensorboard"}
"""Folders of a tree of outputs that hold no runs."""


@dataclass
class Found:
    """The runs that can be compared, and those that cannot."""

    records: list[Record] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Which run, and why."""


def load_folders(places: Sequence[str]) -> Found:
    """Reads every run below or behind `places`, each once.

    Args:
        places: Run directories, sweep directories (they hold a sweep.json), folders with runs below, or globs.

    Raises:
        DataError: a place is not there or holds no run, or none of the runs can be compared.
    """
    found = Found()
    folders: dict[Path, None] = {}
    for place in places:
        for folder in _expand(place):
            folders |= dict.fromkeys(_runs_of(folder, found))
    for folder in folders:
        try:
            found.records.append(record_of_folder(folder))
        except BrokenRunError as error:
            found.left_out.append((str(folder), str(error)))
    return require_records(found, ", ".join(places))


def require_records(found: Found, where: str) -> Found:
    """Raises DataError where nothing is left to compare."""
    if not found.records:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in found.left_out)
        raise DataError(
            f"no run can be compared{reasons}", expected="at least one finished run", where=where,
            fix="name other runs, or finish these: the same run_id, or resume=<run directory>",
        )  # fmt: skip
    return found


def _expand(place: str) -> list[Path]:
    path = Path(place).expanduser()
    if path.is_dir():
        return [path]
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_dir())
    if not matches:
        raise DataError(
            "no such folder" if not glob.has_magic(place) else "matches no folder",
            expected="run directories, a sweep, or a folder with runs below it", where=place,
            fix="`ls outputs/*/*/` shows the runs there are",
        )  # fmt: skip
    return matches


def _runs_of(folder: Path, found: Found) -> Iterator[Path]:
    if (folder / "sweep.json").is_file():
        yield from _runs_of_sweep(folder, found)
        return
    below = [Path(root) for root in _walk(folder)]
    if not below:
        raise DataError(
            "holds no run", expected=f"folders with {_RUN_FILES[0]}, or a sweep.json", where=str(folder),
            fix="`ls outputs/*/*/` shows the runs there are",
        )  # fmt: skip
    yield from (path.resolve() for path in below)


def _walk(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        if any(name in files for name in _RUN_FILES):
            folders.clear()
            yield root
        folders[:] = sorted(name for name in folders if name not in _NEVER_RUNS and not name.startswith("."))


def _runs_of_sweep(folder: Path, found: Found) -> Iterator[Path]:
    """Directories of the jobs that finished; the others are left out with the reason that the sweep wrote down."""
    file = folder / "sweep.json"
    try:
        sweep = json.loads(file.read_text(encoding="utf-8"))
        jobs = sweep["jobs"]
        bases = [Path(str(sweep.get("cwd") or ".")), folder.resolve().parent.parent, folder.resolve(), Path.cwd()]
        for job in jobs:
            status, run = job["status"], job.get("run")
            path = _first(bases, run)
            if status == "finished" and path is not None:
                yield path.resolve()
            else:
                reason = f"{status}: {job['reason']}" if job.get("reason") else status
                label = f"job {job['number']} ({' '.join(job['overrides'])})"
                found.left_out.append((label, reason if status != "finished" else f"its folder is gone: {run}"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"not the record of a sweep ({type(error).__name__}: {error})", expected="jobs with number, overrides, "
            "run and status", where=str(file), fix="name the run directories instead",
        ) from error  # fmt: skip


def _first(bases: Sequence[Path], run: Any) -> Path | None:
    if not isinstance(run, str) or not run:
        return None
    return next((base / run for base in bases if (base / run).is_dir()), None)
