"""A sweep at work: its jobs are planned, run where they should, and judged."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from mmexp.config import SWEEP_NAME, Multirun, SweepConfig, redact_overrides
from mmexp.config.names import listing, nearest
from mmexp.errors import ConfigError
from mmexp.sweep.devices import require_devices, visible_gpus
from mmexp.sweep.grid import expand
from mmexp.sweep.local import LocalScheduler
from mmexp.sweep.plan import Planner, Step, plan_jobs
from mmexp.sweep.plugins import BASIC
from mmexp.sweep.progress import figure_names
from mmexp.sweep.record import Job, SweepRecord, lock
from mmexp.sweep.submitted import Submitted, require_resources
from mmexp.sweep.view import View

Cell = tuple[Job, list[str]]
"""A job of the record, and its overrides as they are run."""


class Stopped(Exception):
    """A signal has stopped the sweep, which ends a search too."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a command line says of its sweep."""

    settings: SweepConfig
    name: str
    outputs: Path
    sweeper: DictConfig
    launcher: DictConfig

    @property
    def is_grid(self) -> bool:
        """Whether all jobs are known before the first one runs."""
        return str(self.sweeper.get("_target_")) in BASIC

    @property
    def is_local(self) -> bool:
        """Whether jobs are processes that this one starts itself."""
        return str(self.launcher.get("_target_")) in BASIC


class Session:
    """One run of the command.

    Args:
        asked: The command line.
        record: New, or of the sweep that is continued.
        planner: Checks a job.
        setup: Settings, sweeper and launcher.
    """

    def __init__(self, asked: Multirun, record: SweepRecord, planner: Planner, setup: Setup) -> None:
        self.asked, self.record, self.planner, self.setup = asked, record, planner, setup
        self.jobs: list[Job] = []
        """Those that this command has run."""
        self._gpus: list[str] | None = None

    def plan(self, cells: Sequence[Cell]) -> dict[int, list[Step]]:
        """The steps of every job that is not finished; ConfigError when one cannot run, or not beside the others."""
        plans = plan_jobs(self.record, {job.number: overrides for job, overrides in cells}, self.planner)
        steps = [step for steps in plans.values() for step in steps]
        if not steps:
            return plans
        if not self.setup.is_local:
            require_resources(self.setup.launcher, steps)
            return plans
        if self._gpus is None:
            self._gpus = visible_gpus() if any(step.is_on_gpu for step in steps) else []
        require_devices(steps, self.setup.settings.n_jobs, self._gpus)
        return plans

    @contextmanager
    def opened(self, num_jobs: int | None) -> Iterator[View]:
        """The directory is this process's own; `run` may be called."""
        settings = self.setup.settings
        os.environ[SWEEP_NAME] = self.record.id  # every job inherits it, those too that a launcher starts elsewhere
        with lock(self.record.path) as held, View(self.record, Console(highlight=False)) as view:
            self.record.status = "running"
            self.record.save()
            count = "search" if num_jobs is None else f"{num_jobs} of {len(self.record.jobs)} jobs to run"
            at_once = f", {settings.n_jobs} at once" if self.setup.is_local else ", each where the launcher puts it"
            view.say(f"{count}{at_once}; {self.record.path}")
            self._executor: LocalScheduler | Submitted
            if self.setup.is_local:
                gpus = self._gpus or []
                self._executor = LocalScheduler(
                    self.record, view, settings.n_jobs, gpus, settings.metric, held, settings.warm_start
                )
            else:
                self._executor = Submitted(self.asked, self.record, view, settings.metric)
            self._view: View = view
            try:
                yield view
            except BaseException:  # raised again
                self.record.status = "failed"
                self.record.save()
                raise
            finally:
                if isinstance(self._executor, LocalScheduler):
                    self._executor.close()

    def run(self, jobs: Sequence[Job], plans: dict[int, list[Step]]) -> None:
        """Runs those that have a plan."""
        todo = [job for number, job in {job.number: job for job in jobs}.items() if number in plans]
        self.jobs += todo
        self._executor.run(todo, plans)

    def run_batch(self, batch: Sequence[Sequence[str]]) -> list[float | None]:
        """Runs what a search has chosen, and gives what it is judged by; None for jobs that failed.

        Raises:
            Stopped: a signal came.
            ConfigError: a job cannot run, or a finished one has no such figure.
        """
        cells = [self.cell(overrides) for texts in batch for overrides in expand([t.lstrip("+") for t in texts], {})]
        plans = self.plan(cells)
        for job in (job for job, _ in cells if job.number not in plans):
            self._view.say(f"job {job.number} was chosen again; it counts as it came out")
        if isinstance(self._executor, LocalScheduler):
            self._executor.free = list(self._gpus or [])
        self.run([job for job, _ in cells], plans)
        if self._executor.stopped_by:
            raise Stopped
        return [self._judged(job) for job, _ in cells]

    def cell(self, overrides: list[str]) -> Cell:
        """The job with these overrides, added where it is new."""
        job = self.record.job(redact_overrides(overrides))
        job.status = "finished" if job.status == "finished" else "queued"
        return job, overrides

    def _judged(self, job: Job) -> float | None:
        metric = str(self.setup.settings.metric)
        if job.status != "finished":
            return None
        if metric not in job.metrics:
            names = figure_names(Path(str(job.run)))
            raise ConfigError(
                f"{metric} is not, or not only once, among the figures of job {job.number}",
                expected=listing(names),
                where="sweep.metric",
                fix=f"sweep.metric={close}" if (close := nearest(metric, names)) else None,
            )
        return job.metrics[metric]

    def close(self, view: View) -> int:
        """Says how it ended; the exit code."""
        record, stopped_by = self.record, self._executor.stopped_by
        left = [job for job in self.jobs if job.status != "finished"]
        record.status = "interrupted" if stopped_by else "failed" if left else "finished"
        record.save()
        view.end()
        statuses = [job.status for job in record.jobs]
        view.say("jobs: " + ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)))
        for job in (job for job in left if job.status != "queued"):
            view.say(f"  job {job.number} {job.status}: {job.reason}  [{' '.join(job.overrides)}]  {record.log(job)}")
        if left or stopped_by:
            again = shlex.join(["python", "-m", record.module, f"sweep.resume={record.path}"])
            stopped = f"stopped by {signal.Signals(stopped_by).name}; " if stopped_by else ""
            view.say(f"{stopped}what is missing runs with: {again}")
        return 128 + stopped_by if stopped_by else int(bool(left))
