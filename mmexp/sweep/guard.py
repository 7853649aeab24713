"""Stands between a sweep and the processes of one job: `python guard.py FD COMMAND ...`; the standard library alone.

It is started as the leader of a session of its own, in which the job and all that the job starts live. A signal to it
goes on to the job. When the sweep is gone, however it went (its end of the pipe FD closes), the job is asked to stop,
and ended where it does not. When the job is over, nothing that it started is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

GRACE_S = 60.0
"""How long a job may save itself after its sweep is gone."""
_LEFT_GRACE_S = 2.0
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Job(Protocol):
    """What a guard needs of a Popen."""

    def wait(self) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...
    def terminate(self) -> None: ...


def main(pipe: int, start: Callable[[], Job]) -> int:
    """Exit code of a job that `start` starts; 128 + the number of a signal that ended it."""
    pending: list[int] = []
    for signum in FORWARDED:  # before there is a job to send them to
        signal.signal(signum, lambda number, frame: pending.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    job = start()

    def forward(signum: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            job.send_signal(signum)

    for signum in FORWARDED:
        signal.signal(signum, forward)
    for signum in pending:
        forward(signum, None)
    threading.Thread(target=_end_with_sweep, args=(pipe, job), daemon=True).start()
    code = job.wait()
    _end_rest()
    return code if code >= 0 else 128 - code


def _end_with_sweep(pipe: int, job: Job) -> None:
    while os.read(pipe, 64):
        pass
    job.terminate()
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


def _end_rest() -> None:
    """What the job has left running in this session's group is asked to end, then ended; this process is not."""
    for signum, wait_s in ((signal.SIGTERM, _LEFT_GRACE_S), (signal.SIGKILL, 0.0)):
        left = _others()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        deadline = time.monotonic() + wait_s
        while left and _others() and time.monotonic() < deadline:
            time.sleep(0.02)


def _others() -> list[int]:
    """Living processes of this group besides this one; none where there is no /proc to tell."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid() and _is_ours(name):
                found.append(int(name))
    return found


def _is_ours(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, _, group = file.read().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return group == str(os.getpgrp()) and state != "Z"


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), lambda: subprocess.Popen(sys.argv[2:])))
