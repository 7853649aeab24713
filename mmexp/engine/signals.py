"""Signals that ask a run to stop: noted when they come, acted on at the next boundary of an optimizer step.

SIGTERM (scancel, preemption) and Ctrl-C mean stop. SIGUSR1 and SIGUSR2 mean that time is running out
(`sbatch --signal=USR1@300`), so under SLURM the job is put into the queue again, at most once for each start of it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.engine.manifest import RunDir
from mmexp.engine.ranks import largest
from mmexp.whole import write_json

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What a run stops for; its exit code is 128 + the number."""
_OUT_OF_TIME = (signal.SIGUSR1, signal.SIGUSR2)
_SCONTROL_TIMEOUT_S = 60


class Interrupted(Exception):
    """The run was asked to stop, and what it had done is saved."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum, self.step = signum, step
        super().__init__(f"{signal.Signals(signum).name} at step {step}")


class StopSignals:
    """Handlers that only take a note. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.noted = 0
        """Number of the signal; 0 for none."""
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """From now on signals are noted; in the main thread only, since no other one may say so."""
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._note) for signum in STOP}

    def restore(self) -> None:
        """As it was before `install`; again is harmless."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def agreed(self, trainer: Trainer) -> int:
        """The signal that any process of the job has noted, 0 for none; all must ask at the same boundary."""
        agreed = int(largest(trainer, self.noted))
        self.noted = agreed or self.noted  # a signal that came while this waited for the others counts at the next one
        return agreed

    def _note(self, signum: int, frame: Any) -> None:
        if self.noted and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.noted = signum
        log.warning("%s: saving after this step", signal.Signals(signum).name)


@contextmanager
def stopping_at_once(run: RunDir, step: int) -> Iterator[None]:
    """For work that is done again from its beginning (evaluation): a signal raises `Interrupted` where it comes."""

    def stop(signum: int, frame: Any) -> None:
        raise Interrupted(signum, step)

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {signum: signal.signal(signum, stop) for signum in STOP} if in_main_thread else {}
    try:
        yield
    except Interrupted as stopped:
        requeue(run, stopped)
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def requeue(run: RunDir, stop: Interrupted) -> bool:
    """Puts the SLURM job of this process into its queue again, where the signal said that its time is over.

    `requeue.json` in the run directory keeps it to once for each start of the job, and ends a job that is started
    again and again without getting any further.

    Returns:
        Whether the job was requeued. Call it when everything is saved: SLURM may end this process at once.
    """
    job = _slurm_job()
    if job is None or stop.signum not in _OUT_OF_TIME:
        return False
    if "SUBMITIT_EXECUTOR" in os.environ:
        log.info("requeueing is left to submitit")
        return False
    mark = {"job": job, "start": os.environ.get("SLURM_RESTART_COUNT", "0"), "step": stop.step}
    if reason := _reason_against(run.path / "requeue.json", mark):
        log.warning("job %s is not requeued: %s", job, reason)
        return False
    write_json(run.path / "requeue.json", mark)
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SCONTROL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s: %s", " ".join(command), error)
        return False
    if done.returncode:
        log.warning("%s ended with code %d: %s", " ".join(command), done.returncode, done.stderr.strip())
        return False
    log.info("job %s is requeued; it continues this run", job)
    return True


def _slurm_job() -> str | None:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def _reason_against(file: Path, mark: dict[str, Any]) -> str | None:
    if not file.is_file():
        return None
    last = json.loads(file.read_text(encoding="utf-8"))
    if (last["job"], last["start"]) == (mark["job"], mark["start"]):
        return "this start of it has been already"
    if last["job"] == mark["job"] and mark["step"] <= last["step"]:
        return f"it has not got beyond step {last['step']} since it was requeued"
    return None
