"""Jobs as processes of this machine: who runs when, what becomes of each, and what a signal does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mmexp.sweep import guard
from mmexp.sweep.devices import job_environment
from mmexp.sweep.plan import Step
from mmexp.sweep.progress import is_finished, main_figures, reason
from mmexp.sweep.record import Job, Status, SweepRecord
from mmexp.sweep.view import View

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_ORDERLY = {128 + signum for signum in STOP}
_POLL_S = 0.05


@dataclass
class _Running:
    job: Job
    step: Step
    process: subprocess.Popen[bytes]
    pipe: int
    """The guard ends the job when this is closed."""
    log_begin: int
    """Bytes of the log that are of earlier processes."""
    since: float
    gpus: list[str]
    is_told: bool = False
    """Whether it has been asked to stop."""


class LocalScheduler:
    """Runs the steps of jobs, at most `n_jobs` at once; a step that several jobs share runs once.

    Args:
        record: The sweep; saved after every change.
        view: Is told of every change.
        n_jobs: Process trees at once.
        gpus: What can be shared out among them.
        metric: What jobs are judged by.
        lock: Is inherited by the guards, so that nobody works on this sweep while a job is left.
    """

    def __init__(
        self, record: SweepRecord, view: View, n_jobs: int, gpus: list[str], metric: str | None, lock: IO[str]
    ) -> None:
        self.record, self.view, self.n_jobs, self.metric, self.lock = record, view, n_jobs, metric, lock
        self.stopped_by = 0
        """Number of the signal that ended the sweep; 0 for none."""
        self._kill = False
        self._free = list(gpus)
        self._running: list[_Running] = []
        self._ended: dict[Path, tuple[Status, Job]] = {}

    def run(self, jobs: Sequence[Job], plans: Mapping[int, list[Step]]) -> None:
        """Returns when every job is over, or, after a signal, when the running ones have saved themselves."""
        for job, step in ((job, step) for job in jobs for step in plans[job.number]):
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
        gpus, self._free = self._free[:count], self._free[count:]
        log = self.record.log(job)
        log.parent.mkdir(exist_ok=True)
        reading, writing = os.pipe()
        command = [sys.executable, "-I", "-S", guard.__file__, str(reading), *step.command]
        with log.open("ab") as output:
            log_begin = output.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=job_environment(step, self.n_jobs, gpus, os.environ),
                start_new_session=True,
                pass_fds=(reading, self.lock.fileno()),
            )
        os.close(reading)
        self._running.append(_Running(job, step, process, writing, log_begin, time.monotonic(), gpus))
        job.status, job.exit_code, job.reason = "running", None, None
        self._changed(job, step.stage if job.stages else "")

    def _reap(self) -> None:
        for run in [run for run in self._running if run.process.poll() is not None]:
            self._running.remove(run)
            os.close(run.pipe)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(run.process.pid, signal.SIGKILL)  # where the guard itself was killed
            self._free += run.gpus
            self._note_end(run)

    def _note_end(self, run: _Running) -> None:
        job, code = run.job, run.process.returncode
        job.wall_s = round((job.wall_s or 0.0) + time.monotonic() - run.since, 2)
        job.exit_code = code = code if code >= 0 else 128 - code
        status: Status = "finished"
        if code:
            status = "interrupted" if code in _ORDERLY or self.stopped_by else "failed"
            job.reason = reason(self.record.log(job), code, run.log_begin)
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
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if self._kill:
                    os.killpg(run.process.pid, signal.SIGKILL)
                elif not run.is_told:
                    run.process.send_signal(self.stopped_by)
            run.is_told = True
