"""Sweeps of small programs that stand for runs."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mmexp.sweep.local import LocalScheduler
from mmexp.sweep.plan import Step
from mmexp.sweep.record import SweepRecord, lock, new_record
from mmexp.sweep.view import View

FINISH = "import json, pathlib, sys; run = pathlib.Path(sys.argv[1]); run.mkdir(parents=True, exist_ok=True); "
FINISH += "(run / 'manifest.json').write_text(json.dumps({'status': 'finished'}))"
"""A program that does what is needed of a run: its manifest says that it ended well."""


def program(source: str, run: Path, stage: str = "align", devices: int = 1) -> Step:
    """A step that runs `source`, which gets the run's directory as its argument."""
    return Step(command=[sys.executable, "-c", source, str(run)], run=run, stage=stage, devices=devices)


class Sweep:
    """A record with its plans, and a way to run them."""

    def __init__(self, path: Path) -> None:
        self.record: SweepRecord = new_record(path, "try", "mmexp.train", ["x=1,2"], None)
        self.plans: dict[int, list[Step]] = {}
        self.shown = io.StringIO()

    def add(self, *steps: Step) -> None:
        job = self.record.job([f"x={len(self.record.jobs)}"])
        self.plans[job.number] = list(steps)
        job.run = str(steps[-1].run)
        job.stages = [{"stage": step.stage, "run": str(step.run)} for step in steps] if len(steps) > 1 else []

    def run(self, n_jobs: int = 1) -> int:
        """Number of the signal that stopped it."""
        console = Console(file=self.shown, width=200)
        with lock(self.record.path) as held, View(self.record, console) as view:
            scheduler = LocalScheduler(self.record, view, n_jobs, [], None, held)
            scheduler.run(self.record.jobs, self.plans)
            return scheduler.stopped_by

    @property
    def statuses(self) -> list[str]:
        return [job.status for job in self.record.jobs]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path / "sweep")


@pytest.fixture
def step(tmp_path: Path) -> Callable[..., Step]:
    """`step(source, "name")`: a program with a run directory of that name."""

    def make(source: str, name: str, stage: str = "align", devices: int = 1) -> Step:
        return program(source, tmp_path / "runs" / name, stage, devices)

    return make
