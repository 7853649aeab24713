"""Jobs forked from a server: what holds for a new interpreter holds for them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmexp.sweep.process import Guarded, start
from mmexp.sweep.warm import WarmServer
from tests.sweep.test_schedule import alive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
Start = Callable[..., Guarded]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> Iterator[WarmServer]:
    """It has imported `shared`, which says in which process, and what a test names."""
    (tmp_path / "shared.py").write_text("import os\nREAD_BY = os.getpid()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = WarmServer(["shared", *getattr(request, "param", [])])
    yield server
    server.close()


@pytest.fixture
def run(server: WarmServer, tmp_path: Path) -> Start:
    """`run(source, "a", ...)`: a module with this source and these arguments."""

    def make(source: str, *args: str, environment: dict[str, str] | None = None, kept: Sequence[int] = ()) -> Guarded:
        if not (tmp_path / "job.py").exists():  # others may be reading it
            (tmp_path / "job.py").write_text(source)
        command = [sys.executable, "-m", "job", *args]
        return start(command, tmp_path / "log", environment or dict(os.environ), kept, str(tmp_path), server)

    return make


def code_of(job: Guarded) -> int:
    wait_for(lambda: job.code() is not None)
    return int(job.code() or 0)


@pytest.mark.parametrize("server", [["torch"]], indirect=True)
def test_it_is_as_if_the_command_had_been_typed(run: Start, server: WarmServer, tmp_path: Path) -> None:
    source = (
        "import atexit, json, os, sys, threading, shared, torch\n"
        "print('to stdout'); print('to stderr', file=sys.stderr)\n"
        "facts = dict(args=sys.argv[1:], name=__name__, cwd=os.getcwd(), own=os.environ.get('OWN'), path=sys.path[0],\n"
        "             home='HOME' in os.environ, stdin=sys.stdin.read(), threads=torch.get_num_threads(),\n"
        "             main=sys.modules['__main__'].__spec__.name, leader=os.getsid(0) == os.getppid(),\n"
        "             forked=shared.READ_BY == int(os.environ['SERVER']), fds=len(os.listdir('/proc/self/fd')))\n"
        "json.dump(facts, open('facts', 'w'))\n"
        "atexit.register(lambda: open('at_exit', 'w').close())\n"
        "threading.Thread(target=lambda: open('thread', 'w').close()).start()\n"
    )
    environment = {"OWN": "x", "OMP_NUM_THREADS": "1", "SERVER": str(server._server.pid)}
    (tmp_path / "log").write_text("earlier\n")
    job = run(source, "x=1", "y", environment=environment)
    assert code_of(job) == 0
    facts: dict[str, Any] = json.loads((tmp_path / "facts").read_text())
    assert facts.pop("fds") <= 4, "standard streams and the listing"
    assert facts == {"args": ["x=1", "y"], "name": "__main__", "cwd": str(tmp_path), "own": "x", "home": False,
                     "path": str(tmp_path), "stdin": "", "threads": 1, "main": "job", "leader": True,
                     "forked": True}  # fmt: skip
    assert (tmp_path / "at_exit").is_file()
    assert (tmp_path / "thread").is_file()
    assert sorted((tmp_path / "log").read_text().split("\n")) == ["", "earlier", "to stderr", "to stdout"]
    assert job.log_begin == len("earlier\n")


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no rows')", 1, "no rows"),
        ("raise SystemExit", 0, ""),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os.abort()", 128 + signal.SIGABRT, ""),
        ("import os; os._exit(9)", 9, ""),
    ],
)
def test_it_ends_with_the_code_and_the_words_of_its_own(
    run: Start, tmp_path: Path, source: str, code: int, words: str
) -> None:
    assert code_of(run(source)) == code
    assert words in (tmp_path / "log").read_text()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_it_even_right_after_its_start(run: Start, tmp_path: Path, signum: int) -> None:
    source = f"import signal, time; signal.signal({int(signum)}, lambda *args: exit({128 + signum}))\ntime.sleep(60)\n"
    job = run(source)
    job.ask_to_stop(signum)
    assert code_of(job) == 128 + signum


def test_what_it_has_started_ends_with_it(run: Start, tmp_path: Path) -> None:
    source = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('pid', 'w').write(str(child.pid))"
    )
    assert code_of(run(source)) == 0
    wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_it_stops_when_its_sweep_is_gone(run: Start, tmp_path: Path) -> None:
    source = (
        "import signal, time\nsignal.signal(15, lambda *args: (open('saved', 'w').close(), exit(143)))\n"
        "open('up', 'w').close(); time.sleep(60)\n"
    )
    job = run(source)
    wait_for((tmp_path / "up").is_file)
    os.close(job.pipe)
    job.pipe = -1
    wait_for((tmp_path / "saved").is_file)
    wait_for(lambda: not alive(job.guard.pid))


def test_the_guard_alone_keeps_files(run: Start, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    job = run("import time; time.sleep(60)", kept=[writing])
    os.close(writing)
    ended: list[bytes] = []
    waiting = threading.Thread(target=lambda: ended.append(os.read(reading, 1)))
    waiting.start()
    time.sleep(0.3)
    assert not ended, "the guard has it"
    job.kill()
    waiting.join(10)
    assert ended == [b""]
    assert code_of(job) == 128 + signal.SIGKILL
    os.close(reading)


def test_several_at_once_and_the_server_gone_meanwhile(run: Start, server: WarmServer, tmp_path: Path) -> None:
    source = "import os, sys, time; time.sleep(1); open(sys.argv[1], 'w').close(); raise SystemExit(int(sys.argv[1]))"
    jobs = [run(source, str(number)) for number in range(3)]
    server._server.kill()
    server._server.wait()
    jobs.append(run(source, "3"))
    assert [code_of(job) for job in jobs] == [0, 1, 2, 3]
    assert all((tmp_path / str(number)).is_file() for number in range(4))


def test_a_server_without_a_sweep_ends(server: WarmServer) -> None:
    pid = server._server.pid
    assert alive(pid)
    server.close()
    wait_for(lambda: not alive(pid))
