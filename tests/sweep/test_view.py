"""What a terminal shows of a sweep."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

from rich.console import Console

from mmexp.sweep.plan import Step
from mmexp.sweep.progress import figure, main_figures, pace
from mmexp.sweep.view import View
from tests.sweep.conftest import Sweep

Make = Callable[..., Step]


def shown(sweep: Sweep, steps: list[Step], height: int) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=160, height=height, color_system=None)
    with View(sweep.record, console) as view:
        view.refresh(
            [(job, step) for job, step in zip(sweep.record.jobs, steps, strict=True) if job.status == "running"]
        )
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()


def test_a_table_of_jobs_with_progress_result_and_reason(sweep: Sweep, step: Make) -> None:
    steps = [step("", name) for name in "abcd"]
    for made in steps:
        sweep.add(made)
    done, running, failed, _ = sweep.record.jobs
    for job in sweep.record.jobs:
        job.overrides = ["llm=tiny", *job.overrides]
    done.status, done.metrics, done.wall_s = "finished", {"val/vqa/exact_match": 0.75, "train/loss": 1.5}, 12.3
    failed.status, failed.reason = "failed", "ValueError: no"
    running.status = "running"
    steps[1].run.mkdir(parents=True)
    (steps[1].run / "manifest.json").write_text(json.dumps({"derived": {"num_steps": 40}}))
    (steps[1].run / "metrics.jsonl").write_text('{"step": 7, "train/loss": 2.25}\n{"step": 8, "tra')
    text = shown(sweep, steps, height=40)
    for words in ("1 of 4 jobs", "val/vqa/exact_match 0.75", "step 7/40  loss 2.25", "ValueError: no", "queued"):
        assert words in text
    assert "llm=tiny" not in text, "what all jobs have says nothing"


def test_a_low_terminal_shows_what_tells_most(sweep: Sweep, step: Make) -> None:
    for index in range(30):
        sweep.add(step("", str(index)))
        sweep.record.jobs[-1].status = "finished"
    sweep.record.jobs[20].status = "failed"
    sweep.record.jobs[20].reason = "ValueError: diverged"
    text = shown(sweep, [step("", "x")] * 30, height=12)
    assert "diverged" in text.split("more")[0]
    assert "24 more" in text


def test_figures_by_whole_name_and_by_their_end(sweep: Sweep, step: Make) -> None:
    run = step("", "a").run
    run.mkdir(parents=True)
    results = {"images": {"vqa": {"exact_match": 0.9, "blind": 0.3}}, "combos": {"vqa": {"exact_match": 0.8}}}
    (run / "results.json").write_text(json.dumps(results))
    (run / "metrics.jsonl").write_text('{"step": 9, "train/loss": 0.5}\n')
    assert figure(run, "images/vqa/exact_match") == 0.9
    assert figure(run, "blind") == 0.3
    assert figure(run, "train/loss") == 0.5
    assert figure(run, "exact_match") is None, "two splits have it"
    assert main_figures(run, "blind") == {
        "blind": 0.3, "images/vqa/exact_match": 0.9, "combos/vqa/exact_match": 0.8, "train/loss": 0.5,
    }  # fmt: skip


def test_figures_of_an_evaluation_between_steps_do_not_hide_the_loss(sweep: Sweep, step: Make) -> None:
    run = step("", "a").run
    run.mkdir(parents=True)
    lines = ['{"step": 8, "train/loss": 0.75}', '{"step": 9, "train/loss": 0.5}', '{"step": 10, "val/x/vqa/em": 0.25}',
             '{"step": 12, "val/x/vqa/em": 0.5}']  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = pace(run)
    assert found is not None
    assert (found.step, found.loss) == (12, 0.5)
    assert figure(run, "val/x/vqa/em") == 0.5
    assert figure(run, "train/loss") == 0.5
