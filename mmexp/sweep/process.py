"""One guarded process tree."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmexp.sweep import guard
from mmexp.sweep.warm import Forked, WarmServer

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What a sweep stops for, and hands on to its jobs."""
ORDERLY = frozenset(128 + signum for signum in STOP)
"""Exit codes of a run that was asked to stop, and saved itself."""


@dataclass
class Guarded:
    """A command with everything that it starts; it ends when this process does, however that ends."""

    guard: subprocess.Popen[bytes] | Forked
    pipe: int
    """The guard ends the command when this is closed."""
    log_begin: int
    """Bytes of the log that are of earlier processes."""
    is_told: bool = False
    """Whether it has been asked to stop."""

    def code(self) -> int | None:
        """Exit code, 128 + the number of a signal that ended it; None while it runs. After it nothing is left."""
        code = self.guard.poll()
        if code is None:
            return None
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
            self.kill()  # where the guard itself was killed
        return code if code >= 0 else 128 - code

    def ask_to_stop(self, signum: int) -> None:
        """Sends a signal to the command, once."""
        if not self.is_told:
            self.is_told = True
            with contextlib.suppress(ProcessLookupError):
                self.guard.send_signal(signum)

    def kill(self) -> None:
        """Ends all of it at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.guard.pid, signal.SIGKILL)


def start(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    kept: Sequence[int] = (),
    cwd: str | None = None,
    server: WarmServer | None = None,
) -> Guarded:
    """Starts a command in a session of its own.

    Args:
        command: What runs.
        log: Gets its output, behind what is there.
        environment: All of it.
        kept: Files that stay open for as long as it runs.
        cwd: Working directory; None takes that of this process.
        server: Forks it where it can; None starts a new interpreter.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    with log.open("ab") as output:
        begin = output.tell()
        files = (reading, *kept)
        process = server.start(command, environment, cwd, output.fileno(), files) if server else None
        if process is None:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(reading), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=cwd,
                start_new_session=True,
                pass_fds=files,
            )
    os.close(reading)
    return Guarded(process, writing, begin)
