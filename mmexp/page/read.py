"""A run directory as plain values. What is missing or damaged reads as empty: a report of half a run is useful."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Results = Mapping[str, Mapping[str, Mapping[str, float]]]
"""{split: {benchmark: {metric: value}}}"""

Series = dict[str, list[tuple[int, float]]]
"""Metric to (step, value), steps rising."""

BASELINES = ("blind", "majority")
_NO_CURVES = (*BASELINES, "chance", "num_samples")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a report shows."""

    path: Path
    manifest: Mapping[str, Any]
    results: Results
    series: Series
    predictions: Mapping[str, list[dict[str, Any]]]
    """File stem (`<split>_<benchmark>`) to its lines."""
    config: str
    overrides: str


def load_run(path: Path) -> Run:
    """Reads what is there."""
    manifest, series = load_training(path)
    lines = {file.stem: _json_lines(file) for file in sorted((path / "predictions").glob("*.jsonl"))}
    return Run(
        path=path,
        manifest=manifest,
        results=results_of(_mapping(path / "results.json")),
        series=series,
        predictions={stem: rows for stem, rows in lines.items() if rows},
        config=_text(path / "config.yaml"),
        overrides=_text(path / "overrides.txt"),
    )


def load_training(path: Path) -> tuple[dict[str, Any], Series]:
    """The manifest of a run and its log alone."""
    return _mapping(path / "manifest.json"), series_of(_json_lines(path / "metrics.jsonl"))


def primary_metric(metrics: Mapping[str, float]) -> str:
    """The figure that the baselines belong to: the first that is neither a baseline nor of one type only."""
    return next((key for key in metrics if key not in (*BASELINES, "num_samples") and "/" not in key), "")


def is_validation_curve(name: str) -> bool:
    """Whether a value of metrics.jsonl is a figure of a whole benchmark, `val/<split>/<benchmark>/<metric>`: neither
    of one type of question only nor a baseline."""
    parts = name.split("/")
    return len(parts) == 4 and parts[0] == "val" and parts[3] not in _NO_CURVES


def find_image(name: Any, run_dir: Path) -> Path | None:
    """The file behind a predictions line: relative to the run, the working directory, or a folder above the run."""
    if not isinstance(name, str) or not name:
        return None
    places = (run_dir, Path.cwd(), *run_dir.resolve().parents)
    return next((place / name for place in places if (place / name).is_file()), None)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _mapping(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(file) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; a line that was cut off while being written is left out."""
    rows = []
    for line in _text(file).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def results_of(value: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """The finite numbers of {split: {benchmark: {metric: value}}}."""

    def numbers(metrics: Any) -> dict[str, float]:
        return (
            {key: number for key, number in metrics.items() if _is_finite(number)} if isinstance(metrics, dict) else {}
        )

    splits = {split: group for split, group in value.items() if isinstance(group, dict)}
    return {split: {name: numbers(metrics) for name, metrics in group.items()} for split, group in splits.items()}


def series_of(rows: Iterable[Mapping[str, Any]]) -> Series:
    """Per metric its points. A step that was logged again after a resume counts as logged last."""
    points: dict[str, dict[int, float]] = {}
    for row in rows:
        step = row.get("step")
        if not isinstance(step, int):
            continue
        for key, value in row.items():
            if key != "step" and _is_finite(value):
                points.setdefault(key, {})[step] = float(value)
    return {key: sorted(values.items()) for key, values in points.items()}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
