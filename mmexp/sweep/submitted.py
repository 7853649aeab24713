"""Jobs that a launcher of Hydra starts elsewhere (submitit: SLURM, or processes of this machine)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mmexp.config import Multirun
from mmexp.errors import ConfigError, MmexpError
from mmexp.sweep.plan import Step
from mmexp.sweep.plugins import launcher
from mmexp.sweep.progress import is_finished, main_figures
from mmexp.sweep.record import Job, SweepRecord
from mmexp.sweep.remote import RemoteJobs, read_state
from mmexp.sweep.view import View

_EVERY_S = 0.5
_OVER = ("finished", "failed", "interrupted")


class Submitted:
    """Hands jobs to the launcher and follows what they tell.

    Args:
        asked: The command line, which names the launcher.
        record: The sweep; saved after every change.
        view: Is told of every change.
        metric: What jobs are judged by.
    """

    def __init__(self, asked: Multirun, record: SweepRecord, view: View, metric: str | None) -> None:
        self.asked, self.record, self.view, self.metric = asked, record, view, metric
        self.stopped_by = 0
        """Number of the signal that ended the sweep; 0 for none."""
        self._stop_file = record.path.resolve() / "stop"

    def run(self, jobs: Sequence[Job], plans: Mapping[int, list[Step]]) -> None:
        """Returns when every job is over."""
        self._stop_file.unlink(missing_ok=True)
        (self.record.path / "jobs").mkdir(exist_ok=True)
        waiting = [job for job in jobs if not self._is_done(job, plans[job.number])]
        if not waiting:
            return
        for job in waiting:
            self._file(job).unlink(missing_ok=True)
        files = [str(self._file(job).with_suffix("")) for job in waiting]
        steps = [plans[job.number] for job in waiting]
        task = RemoteJobs(steps=steps, files=files, stop_file=str(self._stop_file), cwd=os.getcwd())
        lost = ""
        chosen = launcher(self.asked, self.record.path.resolve(), task)
        with self._following(waiting, plans):
            try:
                chosen.launch([[] for _ in waiting], 0)
            except MmexpError:
                raise
            except Exception as error:  # of the launcher's queue, for one job; the others have told how they stand
                lost = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        for job in waiting:
            if job.status not in _OVER:
                job.status, job.reason = (
                    "interrupted",
                    f"the launcher does not know of it any more: {lost or 'no reason'}",
                )
                self._changed(job)

    def _is_done(self, job: Job, steps: list[Step]) -> bool:
        if not is_finished(steps[-1].run):
            return False
        job.status, job.reason, job.metrics = "finished", None, main_figures(steps[-1].run, self.metric)
        self._changed(job)
        return True

    def _file(self, job: Job) -> Path:
        return self.record.log(job).resolve().with_suffix(".json")

    @contextmanager
    def _following(self, jobs: Sequence[Job], plans: Mapping[int, list[Step]]) -> Iterator[None]:
        """Reads what jobs tell, and answers signals by telling them to stop."""
        over = threading.Event()

        def stop(signum: int, frame: Any) -> None:
            if self.stopped_by:
                raise KeyboardInterrupt
            self.stopped_by = signum
            self._stop_file.touch()

        def follow() -> None:
            while not over.wait(_EVERY_S):
                self._read(jobs, plans)

        before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        thread = threading.Thread(target=follow, daemon=True, name="follow-jobs")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._read(jobs, plans)
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _read(self, jobs: Sequence[Job], plans: Mapping[int, list[Step]]) -> None:
        for job in jobs:
            state = read_state(self._file(job))
            if state and state["status"] != job.status:
                for name, value in state.items():
                    setattr(job, name, value)
                job.metrics = main_figures(plans[job.number][-1].run, self.metric) if job.status == "finished" else {}
                self._changed(job)
        running = [job for job in jobs if job.status == "running"]
        self.view.refresh([(job, plans[job.number][-1]) for job in running])

    def _changed(self, job: Job) -> None:
        self.record.save()
        self.view.event(job)


def require_resources(node: DictConfig, steps: Sequence[Step]) -> None:
    """Raises ConfigError when what is asked of the queue does not fit what the jobs start.

    Args:
        node: `hydra.launcher`.
        steps: Of all jobs.
    """
    devices = max(step.devices for step in steps)
    wrong: list[MmexpError] = []

    def require(name: str, is_right: bool, expected: str, fix: Any) -> None:
        if not is_right:
            where = f"hydra.launcher.{name}"
            wrong.append(ConfigError(str(node.get(name)), expected=expected, where=where, fix=f"{where}={fix}"))

    ranks = f"one task, which starts the {devices} processes of trainer.devices itself"
    require("tasks_per_node", node.get("tasks_per_node", 1) == 1, ranks, 1)
    require("nodes", node.get("nodes", 1) == 1, "one node; each job of a sweep has its processes on one", 1)
    cpus = node.get("cpus_per_task")
    require(
        "cpus_per_task", cpus is None or cpus >= devices, f"at least one for each of {devices} devices", 4 * devices
    )
    gpus, other = node.get("gpus_per_node"), node.get("gres") or node.get("gpus_per_task")
    if any(step.wants_gpu for step in steps) and not other:
        require("gpus_per_node", gpus == devices, f"trainer.devices, {devices}", devices)
    if wrong:
        raise ConfigError.collect(wrong)
