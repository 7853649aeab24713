"""`-m`: from a command line with swept values, or the directory of a sweep, to jobs that ran, and an exit code."""

from __future__ import annotations

import re
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from mmexp.config import (
    Multirun,
    SweepConfig,
    check_besides,
    compose,
    folders_of,
    localize,
    redact_overrides,
    understand,
)
from mmexp.config.paths import groups
from mmexp.config.redact import REDACTED
from mmexp.errors import CheckpointError, ConfigError
from mmexp.sweep.devices import require_alone, require_devices, visible_gpus
from mmexp.sweep.grid import alternatives, expand, fixed, own_overrides, value_of
from mmexp.sweep.local import LocalScheduler
from mmexp.sweep.plan import Planner, plan_jobs
from mmexp.sweep.record import Job, SweepRecord, load_record, lock, new_record
from mmexp.sweep.view import View

_RESUME = "sweep.resume"
_OPEN = ("failed", "interrupted", "running", "queued")


def run_sweep(asked: Multirun, planner: Planner) -> int:
    """Runs every job that is not finished yet. Nothing starts before all jobs have been checked.

    Returns:
        0 when all finished, 1 when one did not, 128 + the number of the signal that stopped the sweep.

    Raises:
        ConfigError: the mistakes of all jobs; devices that jobs would share; a sweep inside of torchrun or srun.
        CheckpointError: the directory to resume is none, or another process works on it.
    """
    require_alone()
    resumed, asked = _resumed(asked)
    grid = _grid(asked)
    settings = grid.settings
    if resumed is None and settings.dir and (Path(settings.dir) / "sweep.json").is_file():
        resumed = load_record(Path(settings.dir))
    record = resumed or _new(asked, grid)
    jobs = _jobs(record, grid.jobs, resumed is not None)
    plans = plan_jobs(record, {job.number: overrides for job, overrides in jobs}, planner)
    steps = [step for steps in plans.values() for step in steps]
    gpus = visible_gpus() if any(step.is_on_gpu for step in steps) else []
    require_devices(steps, settings.n_jobs, gpus)
    with lock(record.path) as held, View(record, Console(highlight=False)) as view:
        record.status = "running"
        record.save()
        view.say(f"{len(plans)} of {len(record.jobs)} jobs to run, {settings.n_jobs} at once, in {record.path}")
        scheduler = LocalScheduler(record, view, settings.n_jobs, gpus, settings.metric, held)
        scheduler.run([job for job, _ in jobs if job.number in plans], plans)
        return _close(record, scheduler.stopped_by, view)


@dataclass(frozen=True)
class _Grid:
    """The jobs that a command line means."""

    jobs: list[list[str]]
    settings: SweepConfig
    name: str
    outputs: Path


@dataclass(frozen=True, kw_only=True)
class _Own:
    sweep: SweepConfig


def _resumed(asked: Multirun) -> tuple[SweepRecord | None, Multirun]:
    """The sweep that is to be continued, and its command line; what else is given now goes after it, or before all."""
    folder = value_of(asked.overrides, _RESUME)
    if folder is None:
        return None, asked
    record = load_record(Path(folder).expanduser())
    if record.module != asked.module:
        fix = f"python -m {record.module} {_RESUME}={folder}"
        raise CheckpointError(f"a sweep of {record.module}", where=folder, fix=fix)
    now = [text for text in asked.overrides if not text.lstrip("+").startswith(f"{_RESUME}=")]
    own = own_overrides(now)
    others = [text for text in now if text not in own]
    if not others and any(REDACTED in text for text in record.overrides):
        raise ConfigError(
            "the sweep was given a secret, which is not kept",
            expected="the whole command once more, with sweep.resume",
            where=folder,
            fix=f"python -m {record.module} -m ... {_RESUME}={folder}",
        )
    overrides = others or [text for text in map(_localized, record.overrides) if not text.startswith("sweep.dir=")]
    return record, replace(asked, overrides=[*overrides, *own], config_dir=asked.config_dir or record.config_dir)


def _localized(override: str) -> str:
    """What `redact_overrides` wrote, with this machine's folders in it."""
    return re.sub(r"(?<=[=,\[ '\"])(~|\{mmexp\})(?=/|$)", lambda found: str(localize(found.group(1))), override)


def _grid(asked: Multirun) -> _Grid:
    """Every job, of each experiment that is named: its own grid first, then the command line, which narrows or adds."""
    jobs: list[list[str]] = []
    first: DictConfig | None = None
    experiments = alternatives(asked.overrides, "experiments")
    for experiment in experiments:
        chosen = asked.overrides if experiment is None else [
            f"experiments={experiment}" if text.lstrip("+").startswith("experiments=") else text
            for text in asked.overrides
        ]  # fmt: skip
        _require_known(asked, chosen)
        primary = compose(asked.config_name, fixed(chosen), asked.config_dir, with_hydra=True).cfg
        params = [f"{key}={value}" for key, value in (primary.hydra.sweeper.get("params") or {}).items()]
        _require_known(asked, params)
        jobs += expand([*params, *chosen], groups(folders_of(asked.config_dir)))
        first = first or primary
    assert first is not None
    named = value_of(asked.overrides, "experiments") if experiments == [None] else "+".join(map(str, experiments))
    name = re.sub(r"[^\w.+-]+", "+", named or str(first.name)).strip("+")
    return _Grid(jobs, check_besides(_Own, first).sweep, name, Path(str(first.paths.outputs)).expanduser())


def _require_known(asked: Multirun, overrides: Sequence[str]) -> None:
    line = understand(overrides, asked.config_name, folders_of(asked.config_dir))
    if line.errors:
        raise ConfigError.collect(line.errors)


def _new(asked: Multirun, grid: _Grid) -> SweepRecord:
    place = grid.outputs / "sweeps" / f"{grid.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = Path(grid.settings.dir).expanduser() if grid.settings.dir else place
    return new_record(path, grid.name, asked.module, redact_overrides(asked.overrides), asked.config_dir)


def _jobs(record: SweepRecord, grid: list[list[str]], is_resumed: bool) -> list[tuple[Job, list[str]]]:
    """Each job of the record that the grid has, with its overrides as they are run; new cells are added."""
    num_before = len(record.jobs)
    jobs = [(record.job(redact_overrides(overrides)), overrides) for overrides in grid]
    if is_resumed and all(job.number >= num_before for job, _ in jobs):
        raise ConfigError(
            "none of these jobs is in the sweep there",
            expected="the command of that sweep, which may have further values",
            where=str(record.path),
            fix="sweep.resume=DIR alone continues it; without it this is a new sweep",
        )
    for job, _ in jobs:
        job.status = "finished" if job.status == "finished" else "queued"
    return jobs


def _close(record: SweepRecord, stopped_by: int, view: View) -> int:
    """Says how it ended; the exit code."""
    left = [job for job in record.jobs if job.status in _OPEN]
    record.status = "interrupted" if stopped_by else "failed" if left else "finished"
    record.save()
    counts = {status: sum(job.status == status for job in record.jobs) for status in ("finished", *_OPEN)}
    view.say("jobs: " + ", ".join(f"{count} {status}" for status, count in counts.items() if count))
    for job in left:
        if job.status != "queued":
            view.say(f"  job {job.number} {job.status}: {job.reason}  [{' '.join(job.overrides)}]  {record.log(job)}")
    if left:
        again = shlex.join(["python", "-m", record.module, f"{_RESUME}={record.path}"])
        stopped = f"stopped by {signal.Signals(stopped_by).name}; " if stopped_by else ""
        view.say(f"{stopped}what is missing runs with: {again}")
    return 128 + stopped_by if stopped_by else int(bool(left))
