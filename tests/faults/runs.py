"""Real training processes on tiny parts, to be stopped, killed and starved: how they are started, watched and ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from tests.faults import warm

_GRACE_S = 20
"""How long the others may take to end behind the first process."""
DEADLINE_S = 240
PYTHONPATH = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
"""This tree first, whatever is installed; a run also starts processes that import it anew."""
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.faults.warm"])
TINY = (
    "encoder=tiny", "llm=tiny", "logger=none", "evaluation=none", "scale=paper", "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1", "processor.log_ids=true", "stage.grad_clip=1.0", "stage.lr=1e-3",
)  # fmt: skip


def write_rows(folder: Path, count: int = 40) -> None:
    """rows.json: two rows with a picture, then one without, answers of different length."""
    rows: list[dict[str, Any]] = []
    for index in range(count):
        question = "<image>\nWhat?" if index % 3 else "Hello?"
        answer = "number " + "yes " * (index % 5)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        row: dict[str, Any] = {"id": f"r{index}", "conversations": turns}
        if index % 3:
            Image.new("RGB", (40, 30), (index * 6, 90, 255 - index * 6)).save(folder / f"{index}.png")
            row["image"] = f"{index}.png"
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows))


class Run:
    """One run directory, and the process that works on it: a real one, whose imports were done before it was forked."""

    def __init__(self, folder: Path, run_id: str, *settings: str, env: dict[str, str] | None = None) -> None:
        self.folder, self.run_id, self.settings, self.env = folder, run_id, settings, env or {}
        self.path = folder / "outputs" / "default" / "instruct" / run_id
        self.process: Any = None
        self.left: list[int] = []
        """Processes that were left when the first one had ended."""

    def start(self, *more: str, file_limit: int | None = None) -> None:
        """Starts it in a process group of its own; `file_limit` is the largest size in bytes that a file may have."""
        line = [*TINY, "data=llava_json", "data.path=rows.json", *self.settings, *more, f"run_id={self.run_id}"]
        self._out = self.folder / f"{self.run_id}.{time.monotonic_ns()}.out"
        env = {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH, **self.env}
        self.process = _FORKS.Process(target=warm.train, args=(line, self.folder, self._out, env, file_limit))
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self._out.read_text(encoding="utf-8", errors="replace") if self._out.is_file() else ""

    def wait_for(self, there: Callable[[], bool]) -> None:
        """Until `there()`; fails when the process has ended before, or the deadline has come."""
        deadline = time.monotonic() + DEADLINE_S
        while not there():
            assert self.process.is_alive(), self.output
            assert time.monotonic() < deadline, f"deadline\n{self.output}"
            time.sleep(0.002)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: len(self.losses()) >= step)

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def end(self, timeout_s: float = DEADLINE_S) -> tuple[int, str]:
        """Exit code and everything that was written, when the first process has ended; none of the others is left."""
        self.process.join(timeout_s)
        code = self.process.exitcode
        deadline = time.monotonic() + _GRACE_S
        while (left := members(self.pid)) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.left = left
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # the group that it has made
        assert code is not None, f"still there after {timeout_s} s\n{self.output}"
        return code, self.output

    def finish(self, *more: str) -> str:
        """Runs it to its end."""
        self.start(*more)
        code, out = self.end()
        assert code == 0, out
        return out

    def kill(self) -> None:
        """SIGKILL to the whole group at once."""
        os.killpg(self.pid, signal.SIGKILL)
        self.process.join()

    def records(self) -> list[dict[str, Any]]:
        return _lines(self.path / "metrics.jsonl")

    def losses(self) -> list[float]:
        return [record["train/loss"] for record in self.records() if "train/loss" in record]

    def validations(self) -> list[dict[str, Any]]:
        """What was found by evaluations between steps."""
        return [record for record in self.records() if any(name.startswith("val/") for name in record)]

    def ids(self) -> list[list[str]]:
        return [line["ids"] for line in _lines(self.path / "data_order.jsonl")]

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.path / "manifest.json").read_text())

    def checkpoints(self) -> list[str]:
        return sorted(file.name for file in (self.path / "checkpoints").glob("*.ckpt"))


def members(group: int) -> list[int]:
    """Living processes of a process group, without the ones that only wait to be read."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[2]) == group and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def children(pid: int) -> list[int]:
    """Processes that `pid` has started: those that train with it, and its data workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes()
                if parent == pid and (b"mmexp.train" in command or b"forkserver import main" in command):
                    found.append(int(entry.name))
    return found


def same_weights(one: Run, other: Run) -> bool:
    """Whether two runs hand on the same bits."""
    names = sorted(file.name for file in (one.path / "weights").glob("*.safetensors"))
    return bool(names) and all(
        (one.path / "weights" / name).read_bytes() == (other.path / "weights" / name).read_bytes() for name in names
    )


@contextmanager
def tmpfs(folder: Path, size_mb: float) -> Iterator[bool]:
    """A small disk at `folder`; gives False where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={int(size_mb * 1024)}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
