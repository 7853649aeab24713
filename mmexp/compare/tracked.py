"""Runs from Weights & Biases: the same records as from run directories, through its public API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmexp.compare.record import BrokenRunError, Record, record_of
from mmexp.compare.sources import Found, require_records
from mmexp.errors import DataError
from mmexp.page import Results, Run, load_run, results_of, series_of

_VALIDATION = "val/"
"""Figures are logged as val/<split>/<benchmark>/<metric>."""
_EVALUATES = "evaluates"
"""Config key of an evaluation: the id of the run that it is of."""
_STEPS = ("trainer/global_step", "_step")
"""What holds the optimizer step of a row of the history, the first that is there."""

_PRIMARY = ("exact_match", "cider_d", "accuracy_iou50", "text_recall_1", "score")
"""Metrics of our benchmarks that are the mean over samples. Of other benchmarks it is the one with figures by type."""


def load_tracked(project: str, group: str | None, api: Any = None) -> Found:
    """Reads the runs of a project, or of one of its groups.

    Args:
        project: `entity/project`, or a project of the account's default entity.
        group: Only runs of this group; None takes all.
        api: `wandb.Api()`; None makes one, which needs a key and the network.

    Raises:
        DataError: no key, no such project, no answer, or no run that can be compared.
    """
    where = f"wandb={project}" + (f" group={group}" if group else "")
    found = Found()
    try:
        api = api or _open_api()
        runs: list[Any] = list(api.runs(project, filters={"group": group} if group else None))
        later = _evaluations(runs)
        for run in runs:
            if run.config.get(_EVALUATES):
                continue
            try:
                found.records.append(_record(run, later.get(run.id, {})))
            except BrokenRunError as error:
                found.left_out.append((f"{run.name} ({run.id})", str(error)))
    except DataError:
        raise
    except Exception as error:  # its errors have no common base class: of the key, the network, the project
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"W&B gave no runs: {reason}", expected="a project that this account can read", where=where,
            fix="`wandb login`, then wandb=<entity>/<project>; without W&B: runs=[<run directory>,...]",
        ) from error  # fmt: skip
    return require_records(found, where)


def _open_api() -> Any:
    import wandb

    return wandb.Api()


def _evaluations(runs: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Figures that `mmexp.evaluate` has logged in runs of their own, by the id of the run that they are of; what was
    evaluated again counts as it came out last: the API gives the oldest first."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        if (own := run.config.get(_EVALUATES)) and run.state == "finished":
            found.setdefault(str(own), {}).update(run.summary_metrics)
    return found


def _record(run: Any, later: Mapping[str, Any]) -> Record:
    """From a `wandb.apis.public.Run`, and figures that came `later`."""
    if run.state != "finished":
        raise BrokenRunError(f"not finished: {run.state}")
    config = dict(run.config)
    if not isinstance(config.get("stage"), Mapping):
        raise BrokenRunError("its configuration is not that of a run of mmexp")
    folder = _folder(config, str(config.get("run_id") or run.id))
    own = load_run(folder).predictions if folder.is_dir() else {}
    history = [_row(row) for row in run.scan_history()]
    read = Run(
        path=folder,
        manifest={"derived": config.get("derived")},
        results=_results({**run.summary_metrics, **later}),
        series=series_of(history),
        predictions=own,
        config="",
        overrides="",
    )
    return record_of(read, config, _overrides(run, config), folder if folder.is_dir() else None)


def _folder(config: Mapping[str, Any], run_id: str) -> Path:
    """Where the run lies if it ran on this machine; its predictions are only there."""
    paths = config.get("paths")
    outputs = paths.get("outputs") if isinstance(paths, Mapping) else None
    return (
        Path(str(outputs or "outputs")).expanduser() / str(config.get("name")) / str(config["stage"]["name"]) / run_id
    )


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the history as a line of metrics.jsonl."""
    step = next((row[name] for name in _STEPS if row.get(name) is not None), None)
    figures = {key: value for key, value in row.items() if not key.startswith("_") and key not in _STEPS}
    return {"step": int(step) if isinstance(step, int | float) else None} | figures


def _results(summary: Mapping[str, Any]) -> Results:
    """Figures as in results.json. A summary keeps no order, so what stood first there is put first again."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for key, value in summary.items():
        parts = key.removeprefix(_VALIDATION).split("/", 2)
        if key.startswith(_VALIDATION) and len(parts) == 3:
            results.setdefault(parts[0], {}).setdefault(parts[1], {})[parts[2]] = value
    return {
        split: {
            name: dict(sorted(metrics.items(), key=lambda item: _rank(item[0], metrics)))
            for name, metrics in group.items()
        }
        for split, group in results_of(results).items()
    }


def _rank(metric: str, metrics: Mapping[str, float]) -> int:
    if metric in _PRIMARY:
        return 0
    return 1 if any(other.startswith(f"{metric}/") for other in metrics) else 2


def _overrides(run: Any, config: Mapping[str, Any]) -> Sequence[str]:
    """As typed: part of the configuration where it was logged, else the arguments of the process."""
    given = config.get("overrides")
    if isinstance(given, list):
        return [str(text) for text in given]
    metadata = run.metadata
    args = metadata.get("args") if isinstance(metadata, Mapping) else None
    return [str(text) for text in args] if isinstance(args, list) else []
