"""Evaluations between steps: stopped and killed in the middle, and shared by two processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.runs import Run, children, same_weights

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

STEP = ("stage.batch_size=4", "trainer.max_steps=12", "trainer.checkpoint_every_n_steps=4", "stage.micro_batch_size=2")
ASKED = (
    "evaluation=vqa", "evaluation.vqa.splits.test.path=rows.json", "evaluation.vqa.batch_size=3",
    "trainer.evaluate_every_n_steps=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def watched(folder: Path) -> Run:
    """One process that evaluates every fourth step on 12 samples, never stopped."""
    run = Run(folder, "watched", *STEP, *ASKED, "trainer.evaluate_samples=12")
    run.finish()
    return run


def is_evaluating(run: Run, step: int) -> bool:
    """Whether it has begun to evaluate at a step and has not written what it found."""
    return f"step {step}: evaluating" in run.output and all(row["step"] < step for row in run.validations())


def test_the_run_is_the_one_that_never_evaluates(folder: Path, watched: Run) -> None:
    run = Run(folder, "unwatched", *STEP)
    run.finish()
    assert run.losses() == watched.losses()
    assert same_weights(run, watched)
    assert [row["step"] for row in watched.validations()] == [4, 8, 12]


def test_a_run_that_is_killed_or_stopped_in_an_evaluation_misses_none(folder: Path, watched: Run) -> None:
    run = Run(folder, "killed_in_it", *STEP, *ASKED, "trainer.evaluate_samples=12")
    run.start()
    run.wait_for(lambda: is_evaluating(run, 4))
    run.kill()
    assert run.validations() == []
    run.start()
    run.wait_for(lambda: is_evaluating(run, 8))
    run.send(signal.SIGTERM)
    code, out = run.end()
    assert code == 143, out
    assert run.manifest()["step"] == 8
    assert [row["step"] for row in run.validations()] == [4]
    run.finish()
    assert run.losses() == watched.losses()
    assert run.validations() == watched.validations()
    assert same_weights(run, watched)


def test_the_evaluation_at_the_end_is_the_last_point(folder: Path) -> None:
    run = Run(folder, "uncapped", *STEP, *ASKED)
    run.finish()
    assert [row["step"] for row in run.validations()] == [4, 8, 12]
    last = run.validations()[-1]
    assert last["val/test/vqa/num_samples"] == run.validations()[0]["val/test/vqa/num_samples"] == 40
    assert "val/test/vqa/majority" in last
    header = (run.path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/test/vqa/exact_match", "val/test/vqa/majority"} <= set(header)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_stage_2"])
def test_two_processes_find_what_one_finds(folder: Path, watched: Run, strategy: str) -> None:
    two = (*STEP[:-1], "stage.micro_batch_size=1", "trainer.devices=2", f"trainer.strategy={strategy}")
    plain, run = Run(folder, f"plain_{strategy}", *two), Run(folder, f"watched_{strategy}", *two, *ASKED,
                                                             "trainer.evaluate_samples=12")  # fmt: skip
    plain.finish()
    run.finish()
    assert run.losses() == plain.losses()
    assert same_weights(run, plain)
    assert run.validations() == watched.validations()
    answers = [each.path / "validation" / "step_00000008" / "predictions" for each in (run, watched)]
    assert [sorted(file.name for file in folder.iterdir()) for folder in answers] == [["test_vqa.jsonl"]] * 2
    texts = [(folder / "test_vqa.jsonl").read_text() for folder in answers]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_of_two_stops_both_in_an_evaluation(folder: Path, strategy: str) -> None:
    two = (*STEP[:-1], "stage.micro_batch_size=1", "trainer.devices=2", f"trainer.strategy={strategy}")
    asked = (*ASKED, "trainer.max_steps=8", "evaluation.vqa.batch_size=1", "evaluation.vqa.min_new_tokens=16",
             "evaluation.vqa.limit=16", "evaluation.vqa.baselines=[]")  # fmt: skip
    run, whole = Run(folder, f"stopped_{strategy}", *two, *asked), Run(folder, f"ended_{strategy}", *two, *asked)
    run.start()
    run.wait_for(lambda: is_evaluating(run, 4))
    (other,) = children(run.pid)
    os.kill(other, signal.SIGTERM)
    code, out = run.end()
    assert code == 143, out
    assert not run.left
    assert (run.manifest()["step"], run.validations()) == (4, [])
    run.finish()
    whole.finish()
    assert run.losses() == whole.losses()
    assert run.validations() == whole.validations()
    assert same_weights(run, whole)
