"""A job where a launcher has put it: it starts its own processes, and tells in a file how it stands."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mmexp.sweep.devices import job_environment
from mmexp.sweep.plan import Step
from mmexp.sweep.process import ORDERLY, STOP, start
from mmexp.sweep.progress import reason
from mmexp.sweep.record import Status
from mmexp.whole import write_json

_POLL_S = 0.2
_OUT_OF_TIME = (signal.SIGUSR1, signal.SIGUSR2)


@dataclass(kw_only=True)
class State:
    """How a job stands, as its process tells it."""

    status: Status = "running"
    exit_code: int | None = None
    reason: str | None = None
    wall_s: float = 0.0

    def save(self, file: Path) -> None:
        """Writes it."""
        write_json(file, asdict(self))


@dataclass(frozen=True, kw_only=True)
class RemoteJobs:
    """What the launcher carries to where jobs run; each call is one of them.

    Signals go on to the job, which saves. One that says that time is over is then left to the launcher, which puts the
    job into its queue again.
    """

    steps: Sequence[Sequence[Step]]
    """Of each job."""
    files: Sequence[str]
    """Of each job the path of its log and of its state, without their endings."""
    stop_file: str
    """Where this file is, jobs stop."""
    cwd: str

    def __call__(self, cfg: DictConfig) -> int:
        """Runs the job with Hydra's number; its exit code."""
        from hydra.core.hydra_config import HydraConfig

        index = int(HydraConfig.get().job.num)
        return self.run(self.steps[index], Path(f"{self.files[index]}.log"), Path(f"{self.files[index]}.json"))

    def run(self, steps: Sequence[Step], log: Path, file: Path) -> int:
        """Runs the steps of one job."""
        began, noted = time.monotonic(), list[int]()
        state = State()
        state.save(file)
        before = {signum: signal.signal(signum, lambda number, frame: noted.append(number)) for signum in STOP}
        try:
            for step in steps:
                state.exit_code = self._run_step(step, log, noted, state)
                if state.exit_code:
                    break
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
        state.wall_s = round(time.monotonic() - began, 2)
        is_over_time = bool(noted) and noted[0] in _OUT_OF_TIME and state.exit_code != 0
        is_orderly = state.exit_code in ORDERLY or bool(noted)
        state.status = "finished" if not state.exit_code else "interrupted" if is_orderly else "failed"
        state.save(file)
        if is_over_time:
            os.kill(os.getpid(), noted[0])  # the launcher's own answer: into the queue again
        return int(state.exit_code or 0)

    def _run_step(self, step: Step, log: Path, noted: list[int], state: State) -> int:
        if self._must_stop(noted):
            state.reason = "stopped before it began"
            return 128 + self._must_stop(noted)
        process = start(step.command, log, job_environment(step, 1, [], os.environ), cwd=self.cwd)
        while (code := process.code()) is None:
            if signum := self._must_stop(noted):
                process.ask_to_stop(signum)
            time.sleep(_POLL_S)
        state.reason = reason(log, code, process.log_begin) if code else None
        return code

    def _must_stop(self, noted: list[int]) -> int:
        return noted[0] if noted else signal.SIGTERM if Path(self.stop_file).exists() else 0


def read_state(file: Path) -> dict[str, Any]:
    """What a job has told so far; empty before it began."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
