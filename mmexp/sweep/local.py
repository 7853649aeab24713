"""Jobs as processes of this machine: who runs when, what becomes of each, and what a signal does."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mmexp.sweep.devices import job_environment
from mmexp.sweep.plan import Step
from mmexp.sweep.process import ORDERLY, STOP, Guarded, start
from mmexp.sweep.progress import is_finished, main_figures, reason
from mmexp.sweep.record import Job, Status, SweepRecord
from mmexp.sweep.view import View
from mmexp.sweep.warm import WarmServer

_POLL_S = 0.05


@dataclass
class _Running:
    job: Job
    step: Step
    process: Guarded
    since: float
    gpus: list[str]


class LocalScheduler:
    """Runs the steps of jobs, at most `n_jobs` at once; a step that several jobs share runs once.

    Args:
        record: The sweep; saved after every change.
        view: Is told of every change.
        n_jobs: Process trees at once.
        gpus: What can be shared out among them.
        metric: What jobs are judged by.
        lock: Is inherited by the guards, so that nobody works on this sweep while a job is left.
        warm: Whether jobs are forked from a process that has imported everything, where they can.
    """

    def __init__(
        self,
        record: SweepRecord,
        view: View,
        n_jobs: int,
        gpus: list[str],
        metric: str | None,
        lock: IO[str],
        warm: bool = False,
    ) -> None:
        self.record, self.view, self.n_jobs, self.metric, self.lock = record, view, n_jobs, metric, lock
        self.warm = warm and sys.platform == "linux"
        self.stopped_by = 0
        """Number of the signal that ended the sweep; 0 for none."""
        self._kill = False
        self.free = list(gpus)
        """GPUs that no job has."""
        self._server: WarmServer | None = None
        self._running: list[_Running] = []
        self._ended: dict[Path, tuple[Status, Job]] = {}

    def run(self, jobs: Sequence[Job], plans: Mapping[int, list[Step]]) -> None:
        """Returns when every job is over, or, after a signal, when the running ones have saved themselves."""
        for job in jobs:
            for step in plans[job.number]:
                if is_finished(step.run):
                    self._ended.setdefault(step.run, ("finished", job))
        open_jobs = list(jobs)
        with self._signals():
            while open_jobs or self._running:
                self._reap()
                open_jobs = [job for job in open_jobs if not self._settle(job, plans[job.number])]
                if self.stopped_by:
                    self._hand_on()
                    if not self._running:
                        break
                elif len(self._running) < self.n_jobs and (chosen := self._next(open_jobs, plans)):
                    self._start(*chosen)
                    continue
                self.view.refresh([(run.job, run.step) for run in self._running])
                time.sleep(_POLL_S)
        for job in open_jobs:
            if job.status == "running":  # stopped between two stages
                job.status, job.reason = "interrupted", "stopped between two stages"
                self._changed(job)

    def _settle(self, job: Job, steps: list[Step]) -> bool:
        """Whether a job is over: all of its steps are done, or one cannot be."""
        for step in steps:
            if step.run not in self._ended:
                return False
            status, owner = self._ended[step.run]
            if job.stages:
                at = next(entry for entry in job.stages if entry["run"] == str(step.run))
                at["trained_by"] = owner.number
            if status != "finished":
                job.status = status
                if owner is not job:
                    job.reason = f"stage {step.stage}, which job {owner.number} trains too: {owner.reason}"
                break
        else:
            job.status, job.reason = "finished", None
            job.metrics = main_figures(steps[-1].run, self.metric)
        self._changed(job)
        return True

    def _next(self, jobs: list[Job], plans: Mapping[int, list[Step]]) -> tuple[Job, Step] | None:
        busy = {run.step.run for run in self._running}
        active = {run.job.number for run in self._running}
        for job in jobs:
            step = next(step for step in plans[job.number] if step.run not in self._ended)
            if step.run not in busy and job.number not in active:
                return job, step
        return None

    def _start(self, job: Job, step: Step) -> None:
        count = step.devices if step.is_on_gpu and self.n_jobs > 1 else 0
        gpus, self.free = self.free[:count], self.free[count:]
        environment = job_environment(step, self.n_jobs, gpus, os.environ)
        server = self._server_for(step)
        process = start(step.command, self.record.log(job), environment, kept=(self.lock.fileno(),), server=server)
        self._running.append(_Running(job, step, process, time.monotonic(), gpus))
        job.status, job.exit_code, job.reason = "running", None, None
        self._changed(job, step.stage if job.stages else "")

    def _server_for(self, step: Step) -> WarmServer | None:
        if not self.warm or step.is_on_gpu or step.devices > 1 or step.command[1] != "-m":
            return None
        self._server = self._server or WarmServer()
        return self._server

    def close(self) -> None:
        """No more jobs."""
        if self._server:
            self._server.close()

    def _reap(self) -> None:
        for run in list(self._running):
            if (code := run.process.code()) is not None:
                self._running.remove(run)
                self.free += run.gpus
                self._note_end(run, code)

    def _note_end(self, run: _Running, code: int) -> None:
        job = run.job
        job.wall_s = round((job.wall_s or 0.0) + time.monotonic() - run.since, 2)
        job.exit_code = code
        status: Status = "finished"
        if code:
            status = "interrupted" if code in ORDERLY or self.stopped_by else "failed"
            job.reason = reason(self.record.log(job), code, run.process.log_begin)
        self._ended[run.step.run] = (status, job)

    def _changed(self, job: Job, note: str = "") -> None:
        self.record.save()
        self.view.event(job, note)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {signum: signal.signal(signum, self._stop) for signum in STOP}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _stop(self, signum: int, frame: Any) -> None:
        self._kill = bool(self.stopped_by) and signum == signal.SIGINT
        self.stopped_by = self.stopped_by or signum

    def _hand_on(self) -> None:
        """Asks the running jobs to stop, each once; a second Ctrl-C ends them at once."""
        for run in self._running:
            if self._kill:
                run.process.kill()
            run.process.ask_to_stop(self.stopped_by)
