"""One run as a comparison needs it, from its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmexp.compare.settings import Settings, read_config, seed_of, settings_of
from mmexp.page import BASELINES, Results, Run, Series, load_run, primary_metric, spent, total_of

LAST_LOSS = "train/loss"
_BASELINES = (*BASELINES, "chance", "num_samples")
_NO_SETTING = ("run_id", "resume", "seed", "paths", "logger", "name", "inexact_resume")
"""Overrides that say nothing of what is compared."""


class BrokenRunError(Exception):
    """A run that cannot be compared; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run took. From the training log alone, so that it is the same from every source; None: not logged.

    Seconds, tokens and samples are those of the stages before it too, which a run notes when it starts from them.
    """

    train_s: float | None
    """Seconds of training steps."""
    tokens: float | None
    """Tokens that were trained on, soft tokens included."""
    samples: float | None
    images_per_s: float | None
    peak_memory_gb: float | None
    """Most that training held, in 10^9 bytes."""
    tokens_per_image: float | None
    """Soft tokens of one picture."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One answer of one run."""

    score: float | None
    """None where the benchmark grades no single answer."""
    prediction: str
    box: tuple[float, ...] | None
    """Predicted box as shares of the picture."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished run."""

    name: str
    """How it is called on the page: the last folders of its directory."""
    folder: Path | None
    """None when it is not on this machine."""
    seed: int | None
    settings: Settings
    overrides: Sequence[str]
    """As typed, without what names the run."""
    metrics: Mapping[str, float]
    """`split/benchmark/metric[/type]` to value, and `train/loss`."""
    primary: Mapping[str, str]
    """`split/benchmark` to the metric that is the mean of the scores of its samples."""
    series: Series
    cost: Cost
    predictions: Mapping[str, Mapping[tuple[str, str], Mapping[str, Any]]]
    """`split/benchmark` to the lines of its predictions by (sample id, what its target is)."""


def record_of_folder(folder: Path) -> Record:
    """Reads a run directory.

    Raises:
        BrokenRunError: it did not finish, or a file that is needed is missing or damaged.
    """
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise BrokenRunError("no manifest.json")
    try:
        status = json.loads(manifest.read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError, AttributeError) as error:
        raise BrokenRunError("manifest.json is damaged") from error
    if status != "finished":
        raise BrokenRunError(f"not finished: {status or 'no status'}")
    try:
        config = read_config(folder / "config.yaml")
    except ValueError as error:
        raise BrokenRunError(str(error)) from error
    run = load_run(folder)
    if (folder / "results.json").is_file() and not _is_json(folder / "results.json"):
        raise BrokenRunError("results.json is damaged")
    return record_of(run, config, run.overrides.splitlines(), folder)


def record_of(run: Run, config: Mapping[str, Any], overrides: Sequence[str], folder: Path | None) -> Record:
    """What a run holds, wherever it was read."""
    kept = [text for text in overrides if "=" in text and not _is_name(text)]
    last_loss = {LAST_LOSS: run.series[LAST_LOSS][-1][1]} if run.series.get(LAST_LOSS) else {}
    return Record(
        name="/".join(run.path.parts[-3:]),
        folder=folder,
        seed=seed_of(config),
        settings=settings_of(config, folder),
        overrides=kept,
        metrics=_metrics(run.results) | last_loss,
        primary={
            f"{split}/{name}": primary_metric(metrics)
            for split, group in run.results.items()
            for name, metrics in group.items()
            if primary_metric(metrics)
        },
        series=run.series,
        cost=_cost(run.series, run.manifest.get("derived")),
        predictions={
            f"{split}/{name}": _by_sample(run.predictions[f"{split}_{name}"])
            for split, group in run.results.items()
            for name in group
            if f"{split}_{name}" in run.predictions
        },
    )


def line_of(row: Mapping[str, Any]) -> Line:
    """An answer out of a line of a predictions file."""
    score = row.get("score")
    return Line(
        score=float(score) if isinstance(score, int | float) else None,
        prediction=str(row.get("prediction") or ""),
        box=_box(row, "predicted"),
    )


def target_box(row: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The true box of a line of a predictions file, as shares of the picture; None where there is none."""
    return _box(row, "target")


def _box(row: Mapping[str, Any], name: str) -> tuple[float, ...] | None:
    boxes = row.get("boxes")
    value = boxes.get(name) if isinstance(boxes, Mapping) else None
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(isinstance(v, int | float) for v in value):
        return None
    return tuple(map(float, value))


def _is_json(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except ValueError:
        return False


def _is_name(override: str) -> bool:
    return override.lstrip("+~").split("=")[0].split(".")[0].split("/")[0] in _NO_SETTING


def _metrics(results: Results) -> dict[str, float]:
    return {
        f"{split}/{name}/{metric}": value
        for split, group in results.items()
        for name, metrics in group.items()
        for metric, value in metrics.items()
        if metric.split("/")[0] not in _BASELINES
    }


def _by_sample(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Lines by id and target: one id with two targets is two samples, of two worlds for example.

    A target box counts as a box, since every template writes it in its own way.
    """
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        name, repeat = str(row.get("id")), 1
        box = target_box(row)
        target = str(row.get("target") or "") if box is None else str([round(side, 2) for side in box])
        while (name, target) in found:
            repeat += 1
            name = f"{row.get('id')} ({repeat})"
        found[name, target] = row
    return found


def _cost(series: Series, derived: Any) -> Cost:
    facts = derived if isinstance(derived, Mapping) else {}
    own, before, soft = spent(series), facts.get("before"), facts.get("soft_tokens")
    earlier = before if isinstance(before, Mapping) else {}
    media = total_of(series, "data/media_per_s")
    per_image = soft.get("image") if isinstance(soft, Mapping) else None
    with_before = {name: value + float(earlier.get(name) or 0.0) for name, value in own.items()}
    return Cost(
        train_s=with_before.get("train_s"),
        tokens=with_before.get("tokens"),
        samples=with_before.get("samples"),
        images_per_s=media / own["train_s"] if media is not None and own.get("train_s") else None,
        peak_memory_gb=max((value for _, value in series.get("memory/peak_gb", [])), default=None),
        tokens_per_image=float(per_image) if isinstance(per_image, int | float) else None,
    )
