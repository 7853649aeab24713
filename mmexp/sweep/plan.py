"""What a job will start, checked before the first job of the sweep starts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmexp.config import Checked, check, compose
from mmexp.errors import ConfigError, MmexpError
from mmexp.sweep.record import Job, SweepRecord


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process tree: the training of one stage. Jobs with the same `run` share it."""

    command: list[str]
    run: Path
    """Directory of its run."""
    stage: str
    devices: int = 1
    """Processes on each node, one device each."""
    num_nodes: int = 1
    is_on_gpu: bool = False
    """Whether a GPU trains, as this machine would choose."""
    wants_gpu: bool = False
    """Whether the configuration asks for one, wherever it runs."""


Planner = Callable[[Sequence[str], str | None, str], list[Step]]
"""From the overrides of a job, the user's folder of choices and a run id to its steps; ConfigError where it cannot."""


def plan_stage(overrides: Sequence[str], config_dir: str | None, run_id: str) -> tuple[Step, Checked]:
    """The training of one stage with these overrides, and its checked configuration.

    Raises:
        ConfigError: every mistake in it.
    """
    settings = [*overrides, f"run_id={run_id}"]
    composed = compose("train", settings, config_dir)
    checked = check(composed.cfg, composed.registered)
    spine, trainer = checked.spine, checked.parts["trainer"]
    own = ["--config-dir", config_dir] if config_dir else []
    step = Step(
        command=[sys.executable, "-m", "mmexp.train", *own, *settings],
        run=Path(spine.paths.outputs) / spine.name / spine.stage.name / run_id,
        stage=spine.stage.name,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        is_on_gpu=trainer.is_on_gpu,
        wants_gpu=trainer.accelerator in ("gpu", "cuda"),
    )
    return step, checked


def plan_train(overrides: Sequence[str], config_dir: str | None, run_id: str) -> list[Step]:
    """The planner of `mmexp.train`: one stage."""
    return [plan_stage(overrides, config_dir, run_id)[0]]


def plan_jobs(record: SweepRecord, jobs: Mapping[int, list[str]], planner: Planner) -> dict[int, list[Step]]:
    """The steps of each unfinished job by its number; fills in where the runs will be.

    Finished jobs of a recipe are planned too, since others may share their stages; mistakes of theirs do not count.

    Args:
        record: The sweep, which has the jobs.
        jobs: Number to overrides, as they are run.
        planner: Checks a job.

    Raises:
        ConfigError: the mistakes of all jobs, equal ones once.
    """
    plans: dict[int, list[Step]] = {}
    mistakes: dict[str, list[Job]] = {}
    for number, overrides in jobs.items():
        job = record.jobs[number]
        is_done = job.status == "finished"
        if is_done and not job.stages:
            continue
        try:
            steps = planner(overrides, record.config_dir, job.run_id)
            plans |= {} if is_done else {number: steps}
        except MmexpError as error:
            if not is_done:
                mistakes.setdefault(error.render(), []).append(job)
    if mistakes:
        raise ConfigError(_told(mistakes, len(jobs)))
    for number, steps in plans.items():
        job = record.jobs[number]
        job.run = str(steps[-1].run)
        job.stages = [{"stage": step.stage, "run": str(step.run)} for step in steps] if len(steps) > 1 else []
    return plans


def _told(mistakes: dict[str, list[Job]], num_jobs: int) -> str:
    wrong = {job.number for jobs in mistakes.values() for job in jobs}
    lines = [f"{len(wrong)} of {num_jobs} jobs cannot run, so none was started"]
    for text, jobs in mistakes.items():
        others = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        lines += [f"{' '.join(jobs[0].overrides)}{others}:", *(f"  {line}" for line in text.splitlines())]
    return "\n".join(lines)
