"""The directory of a sweep: what its jobs are and how they stand, so that any moment is one to go on from."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Literal

from mmexp.errors import CheckpointError, DataError
from mmexp.whole import write_json

VERSION = 1
LOCK_WAIT_S = 90.0
"""How long a sweep waits for jobs of one that was killed; they save themselves and end."""
Status = Literal["queued", "running", "finished", "failed", "interrupted"]


@dataclass(kw_only=True)
class Job:
    """One cell of the grid."""

    number: int
    """Counts from 0; names its log."""
    overrides: list[str]
    """Of this job, as a user would type them for a single run."""
    run_id: str
    """Name of its run, which follows from sweep and number."""
    run: str | None = None
    """Directory of its run; of a recipe that of the last stage."""
    status: Status = "queued"
    exit_code: int | None = None
    reason: str | None = None
    """Why it failed."""
    wall_s: float | None = None
    """Seconds of this job's own processes, all its starts together."""
    metrics: dict[str, float] = field(default_factory=dict)
    """A few main figures of the finished run."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Of a recipe: each stage with its run, and the job that trained it for this one too."""


@dataclass(kw_only=True)
class SweepRecord:
    """What `sweep.json` holds; readers of sweeps rely on its names."""

    path: Path
    name: str
    module: str
    """What `python -m` runs."""
    overrides: list[str]
    """As typed, of the sweep."""
    config_dir: str | None = None
    started: str = ""
    status: Status = "running"
    jobs: list[Job] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Name of the directory; run ids begin with it."""
        return self.path.name

    @property
    def file(self) -> Path:
        """The record itself."""
        return self.path / "sweep.json"

    def log(self, job: Job) -> Path:
        """Output of a job."""
        return self.path / "jobs" / f"{job.number}.log"

    def job(self, overrides: Sequence[str]) -> Job:
        """The job with these overrides, added where it is new."""
        for job in self.jobs:
            if job.overrides == list(overrides):
                return job
        number = len(self.jobs)
        self.jobs.append(Job(number=number, overrides=list(overrides), run_id=f"{self.id}-{number:02d}"))
        return self.jobs[-1]

    def save(self) -> None:
        """Writes `sweep.json`.

        Raises:
            DataError: it cannot be written.
        """
        own = ("path", "jobs", "module", "overrides", "config_dir")
        flags = ["--config-dir", self.config_dir] if self.config_dir else []
        content = {"version": VERSION, "command": ["python", "-m", self.module, *flags, "-m", *self.overrides]}
        content |= {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        content |= {name: getattr(self, name) for name in ("module", "overrides", "config_dir")}
        content["jobs"] = [asdict(job) for job in self.jobs]
        try:
            write_json(self.file, content)
        except OSError as error:
            raise DataError(f"cannot write: {error.strerror}", where=str(self.file), fix="make room") from error


def new_record(path: Path, name: str, module: str, overrides: Sequence[str], config_dir: str | None) -> SweepRecord:
    """The record of a sweep that begins now; nothing is written yet."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return SweepRecord(
        path=path, name=name, module=module, overrides=list(overrides), config_dir=config_dir, started=started
    )


def load_record(path: Path) -> SweepRecord:
    """The record in a directory.

    Raises:
        CheckpointError: there is none, or it is damaged or of another version.
    """
    file = path / "sweep.json"
    if not file.is_file():
        fix = "`ls -d outputs/sweeps/*/` shows the sweeps there are"
        raise CheckpointError("no sweep.json", expected="the directory of a sweep", where=str(path), fix=fix)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("version") != VERSION:
            raise ValueError(f"not version {VERSION}")
        content.pop("command")
        jobs = [Job(**job) for job in content.pop("jobs")]
        return SweepRecord(path=path, jobs=jobs, **content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"no record of a sweep: {error}", where=str(file)) from error


def lock(path: Path) -> IO[str]:
    """Keeps other processes from working on the sweep. Guards of jobs inherit the lock, so it lasts as long as any job.

    Raises:
        CheckpointError: a living process holds it.
    """
    path.mkdir(parents=True, exist_ok=True)
    file = (path / "sweep.lock").open("a+", encoding="utf-8")
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            if _alive(holder) or time.monotonic() > deadline:
                file.close()
                message = f"process {holder} is working on this sweep, or jobs that it started"
                raise CheckpointError(message, where=str(path), fix="wait for it, or end it") from None
            time.sleep(0.2)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
