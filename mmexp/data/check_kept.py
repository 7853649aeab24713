"""The look at the data before a run, kept for the next run on the same data: a sweep looks once, not once a job."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from mmexp.contracts import Dataset
from mmexp.data.check import PreflightReport, preflight
from mmexp.data.lengths import processor_fingerprint
from mmexp.data.mixture import DatasetConfig
from mmexp.prompt import Processor
from mmexp.whole import write_json

log = logging.getLogger(__name__)

_FORMAT = 1
"""Raised when `preflight` looks at something else."""
_MAX_FILES = 200_000
"""Media beyond which nothing is kept: asking for their dates would take as long as looking."""


def checked(
    config: DatasetConfig, processor: Processor, max_rows: int, cache: Path | None
) -> tuple[Dataset, PreflightReport]:
    """The data set, with what `preflight` finds in it, or found before with the same processor.

    Kept by the data's own hash, its config (which names folders, where the hash knows contents alone), everything in
    the processor that decides tokens, and size and date of every media file that was looked at; one that is another,
    or gone, means a new look. Data without a hash of its own, and data with broken rows, are looked at every time.

    Args:
        config: Builds what will be trained on.
        processor: How.
        max_rows: Rows to tokenise.
        cache: Folder; None keeps nothing.
    """
    dataset = config.build()
    own = getattr(dataset, "fingerprint", None)
    if cache is None or not isinstance(own, str):
        return dataset, preflight(dataset, processor, max_rows)
    facts = (_FORMAT, own, len(dataset), config, os.getcwd(), max_rows, processor_fingerprint(processor))
    file = cache / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"
    if (found := _kept(file)) is not None:
        return dataset, found
    report = preflight(dataset, processor, max_rows)
    if not report.errors and len(report.files) <= _MAX_FILES:
        kept = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
        kept["files"] = {path: _stamp(path) for path in report.files}
        del kept["errors"]
        _keep(file, kept)
    return dataset, report


def _kept(file: Path) -> PreflightReport | None:
    """What was found before; None where nothing is kept, or a file is not as it was."""
    try:
        facts: dict[str, Any] = json.loads(file.read_bytes())
        stamps: dict[str, Any] = facts.pop("files")
        report = PreflightReport(**facts, files=dict.fromkeys(stamps))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        log.warning("%s is damaged (%s); the data is looked at again", file, error)
        return None
    changed = [path for path, stamp in stamps.items() if _stamp(path) != stamp]
    if changed:
        log.info("%d media files such as %s have changed; the data is looked at again", len(changed), changed[0])
        return None
    return report


def _stamp(path: str) -> list[int] | None:
    """Size and date; None for a file that is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _keep(file: Path, facts: dict[str, Any]) -> None:
    try:
        write_json(file, facts)
    except OSError as error:  # a run does not need it
        log.warning("what was found in the data is not kept: %s", error)
