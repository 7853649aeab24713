"""`-m`: from a command line with swept values, or the directory of a sweep, to jobs that ran, and an exit code."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

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
from mmexp.sweep.devices import require_alone
from mmexp.sweep.grid import alternatives, expand, fixed, own_overrides, value_of
from mmexp.sweep.plan import Planner
from mmexp.sweep.plugins import require_installed, search
from mmexp.sweep.record import SweepRecord, load_record, new_record
from mmexp.sweep.session import Session, Setup, Stopped

_RESUME = "sweep.resume"


def run_sweep(asked: Multirun, planner: Planner) -> int:
    """Runs every job that is not finished yet. Nothing starts before all jobs of a grid have been checked.

    Returns:
        0 when all finished, 1 when one did not, 128 + the number of the signal that stopped the sweep.

    Raises:
        ConfigError: the mistakes of all jobs; devices that jobs would share; a sweep inside of torchrun or srun.
        CheckpointError: the directory to resume is none, or another process works on it.
    """
    require_alone()
    resumed, asked = _resumed(asked)
    require_installed(asked.overrides)
    grid, setup = _understood(asked)
    given = Path(setup.settings.dir).expanduser() if setup.settings.dir else None
    if resumed is None and given and (given / "sweep.json").is_file():
        resumed = load_record(given)
    session = Session(asked, resumed or _new(asked, setup), planner, setup)
    return _run_grid(session, grid, resumed is not None) if setup.is_grid else _run_search(session)


def _run_grid(session: Session, grid: list[list[str]], is_resumed: bool) -> int:
    num_before = len(session.record.jobs)
    cells = [session.cell(overrides) for overrides in grid]
    if is_resumed and all(job.number >= num_before for job, _ in cells):
        raise ConfigError(
            "none of these jobs is in the sweep there",
            expected="the command of that sweep, which may have further values",
            where=str(session.record.path),
            fix="sweep.resume=DIR alone continues it; without it this is a new sweep",
        )
    if len({job.number for job, _ in cells}) == len(session.record.jobs):  # all there is, and perhaps more
        session.record.overrides = redact_overrides(session.asked.overrides)
    plans = session.plan(cells)
    with session.opened(len(plans)) as view:
        session.run([job for job, _ in cells], plans)
        return session.close(view)


def _run_search(session: Session) -> int:
    """A sweeper of Hydra's chooses jobs by the results of earlier ones; its study lies in the sweep's directory."""
    record, setup = session.record, session.setup
    if setup.settings.metric is None:
        raise ConfigError(
            "not given, and a search needs something to judge jobs by",
            expected="a figure of results.json, such as heldout_images/vqa/exact_match, or of metrics.jsonl",
            where="sweep.metric",
            fix="sweep.metric=train/loss hydra.sweeper.direction=minimize",
        )
    further = [f"hydra.sweeper.n_jobs={setup.settings.n_jobs}"] if "n_jobs" in setup.sweeper else []
    if "max_failure_rate" in setup.sweeper:
        further += ["hydra.sweeper.max_failure_rate=1.0"]
    if "storage" in setup.sweeper and setup.sweeper.storage is None:
        file = record.path.resolve() / "study.db"
        further += [f"hydra.sweeper.storage='sqlite:///{file}'", f"hydra.sweeper.study_name='{record.id}'"]
    done = sum(job.status in ("finished", "failed") for job in record.jobs)
    last = []
    if "n_trials" in setup.sweeper and done:
        last = [f"hydra.sweeper.n_trials={max(0, setup.sweeper.n_trials - done)}"]
    for job in record.jobs:
        job.status = "interrupted" if job.status in ("running", "queued") else job.status
    with session.opened(None) as view:
        try:
            search(session.asked, record.path, further, last, session.run_batch)
        except Stopped:
            pass
        except ValueError:  # Optuna has no best trial to name
            if any(job.status == "finished" for job in record.jobs):
                raise
        return session.close(view)


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


def _understood(asked: Multirun) -> tuple[list[list[str]], Setup]:
    """Every job, of each experiment that is named: its own grid first, then the command line, which narrows or adds.

    Where Hydra's sweeper is another one than the grid, there are no jobs yet.
    """
    jobs: list[list[str]] = []
    setups: list[Setup] = []
    experiments = alternatives(asked.overrides, "experiments")
    for experiment in experiments:
        chosen = asked.overrides if experiment is None else [
            f"experiments={experiment}" if text.lstrip("+").startswith("experiments=") else text
            for text in asked.overrides
        ]  # fmt: skip
        _require_known(asked, chosen)
        primary = compose(asked.config_name, fixed(chosen), asked.config_dir, with_hydra=True).cfg
        params = _overrides(primary.hydra.sweeper.get("params") or {})
        named = value_of(asked.overrides, "experiments") if experiment is None else "+".join(map(str, experiments))
        setups.append(_setup(primary, named))
        for grid in setups[-1].settings.grids or [{}]:
            own = [*params, *_overrides(grid)]
            _require_known(asked, own)
            if setups[-1].is_grid:
                jobs += expand([*own, *chosen], groups(folders_of(asked.config_dir)))
    searched = not all(setup.is_grid for setup in setups)
    if searched and len(setups) > 1:
        raise ConfigError("several experiments, and a search", where="experiments", fix="one command for each")
    if searched and setups[0].settings.grids:
        raise ConfigError("grids, and a search", expected="one of them", where="sweep.grids")
    return jobs, setups[0]


def _overrides(grid: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in grid.items()]


def _setup(primary: DictConfig, named: str | None) -> Setup:
    return Setup(
        settings=check_besides(_Own, primary).sweep,
        name=re.sub(r"[^\w.+-]+", "+", named or str(primary.name)).strip("+"),
        outputs=Path(str(primary.paths.outputs)).expanduser(),
        sweeper=primary.hydra.sweeper,
        launcher=primary.hydra.launcher,
    )


def _require_known(asked: Multirun, overrides: Sequence[str]) -> None:
    line = understand(overrides, asked.config_name, folders_of(asked.config_dir))
    if line.errors:
        raise ConfigError.collect(line.errors)


def _new(asked: Multirun, setup: Setup) -> SweepRecord:
    place = setup.outputs / "sweeps" / f"{setup.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = Path(setup.settings.dir).expanduser() if setup.settings.dir else place
    return new_record(path, setup.name, asked.module, redact_overrides(asked.overrides), asked.config_dir)
