"""Jobs that are forked from a process which has imported everything, instead of importing it again.

Half of the time in which a short job starts is Python reading Lightning, transformers and what these import. A server
reads it once a sweep; each job is a fork of it, behind a guard that is one too, and otherwise as if
`python -m mmexp.train ...` had been typed. For jobs of one process on the CPU, and on Linux: CUDA does not survive a
fork, and Lightning starts the other processes of a job anew.

`python -m mmexp.sweep.warm FD MODULE...` is the server: it imports the modules and waits at the socket FD.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NoReturn

from mmexp.sweep import guard

IMPORTED = ("mmexp.assemble", "mmexp.engine.fitting", "mmexp.engine.predict", "mmexp.present", "mmexp.present_size",
            "mmexp.report", "mmexp.tracking", "transformers.modeling_utils")  # fmt: skip
"""What every job needs."""
_MAX_FDS = 8


class WarmServer:
    """The sweep's side of the server.

    Args:
        modules: What it imports.
    """

    def __init__(self, modules: Sequence[str] = IMPORTED) -> None:
        self._channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", __name__, str(its_end.fileno()), *modules]
        silent = subprocess.DEVNULL
        self._server = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, start_new_session=True,
                                        pass_fds=[its_end.fileno()])  # fmt: skip
        its_end.close()

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], cwd: str | None, log: int, kept: Sequence[int]
    ) -> Forked | None:
        """A guard with its job; None where the server has died. Waits until the server has imported everything.

        Args:
            command: `[python, "-m", module, ...]`.
            environment: All of it.
            cwd: Working directory; None takes that of this process.
            log: File that gets the output.
            kept: Files that the guard keeps open; the job ends when the other end of the first one is closed.
        """
        result, told = os.pipe()
        request = {"command": list(command), "environment": dict(environment), "cwd": cwd or os.getcwd()}
        with tempfile.TemporaryFile() as file, contextlib.closing(os.fdopen(told, "wb", 0)) as told_file:
            file.write(json.dumps(request).encode())
            file.flush()
            try:
                fds = [file.fileno(), log, told_file.fileno(), *kept]
                socket.send_fds(self._channel, [b"start"], fds)
                pid = self._channel.recv(64)
            except OSError:
                pid = b""
        if pid:
            return Forked(int(pid), result)
        os.close(result)
        return None

    def close(self) -> None:
        """Ends the server; its jobs go on."""
        self._channel.close()
        self._server.wait()


class Forked:
    """What a sweep asks of a Popen, for a guard that another process has forked."""

    def __init__(self, pid: int, result: int) -> None:
        self.pid = pid
        self._result = result
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, None while it runs; the guard's last act is to tell it, unless it was killed."""
        if self._code is None and select.select([self._result], [], [], 0)[0]:
            self._code = int(os.read(self._result, 16) or -signal.SIGKILL)
            os.close(self._result)
        return self._code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)


def serve(channel: socket.socket, modules: Sequence[str]) -> None:
    """Answers every request with the pid of a new guard, until the sweep is gone."""
    for name in modules:
        import_module(name)
    signal.pthread_sigmask(signal.SIG_BLOCK, guard.FORWARDED)  # the sweep decides; a guard takes them when it is ready
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guards tell their exit codes themselves
    gc.collect()
    gc.freeze()  # forks share these pages for as long as nobody counts references in them
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 16, _MAX_FDS)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            channel.close()
            _guard(*fds)
        for fd in fds:
            os.close(fd)
        channel.send(str(pid).encode())


def _guard(request_fd: int, log: int, told: int, pipe: int, *kept: int) -> NoReturn:
    """The guard of one job, which becomes the leader of a session of its own."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for own, standard in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(own, standard)
        with os.fdopen(request_fd, "rb") as file:
            file.seek(0)
            request = json.load(file)
        not_for_the_job = [nothing, log, told, pipe, *kept]
        code = guard.main(pipe, lambda: _ForkedJob(request, not_for_the_job))
        os.write(told, str(code).encode())
    except BaseException:  # nothing may run on in the server's place
        traceback.print_exc()
    finally:
        os._exit(code)


class _ForkedJob:
    """What a guard asks of a Popen."""

    def __init__(self, request: dict[str, object], not_for_the_job: Sequence[int]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, guard.FORWARDED)  # until it is clear who takes them
        self.pid = os.fork()
        if self.pid == 0:
            for fd in not_for_the_job:
                os.close(fd)
            os._exit(_run(**request))  # type: ignore[arg-type]  # as `WarmServer.start` has written it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, guard.FORWARDED)
        self._is_over = False

    def wait(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._is_over = True
        return code

    def send_signal(self, signum: int) -> None:
        if not self._is_over:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _run(command: list[str], environment: dict[str, str], cwd: str) -> int:
    """The command, and all that the interpreter does at its end; its exit code."""
    try:
        for signum in guard.FORWARDED:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, guard.FORWARDED)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(cwd)
        sys.argv = command[2:]
        if not sys.flags.safe_path:
            sys.path[0] = os.getcwd()
        _use_threads(environment)
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            sys.stderr.write(f"{end.code}\n")
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # as the interpreter itself would
        traceback.print_exc()
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does
    except BaseException:  # a signal meanwhile: told, and the end goes on
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _use_threads(environment: Mapping[str, str]) -> None:
    """OMP_NUM_THREADS counts when torch is imported, which has happened."""
    if "torch" in sys.modules and (count := environment.get("OMP_NUM_THREADS", "")).isdigit():
        sys.modules["torch"].set_num_threads(int(count))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
