"""Bad batches, workers and trackers: what they do to a run, and what they must not do."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest
import torch

from mmexp.engine.checkpoint import newest
from tests.faults.conftest import STEP
from tests.faults.runs import Run, children

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

OWN = ("--config-dir", "conf")


def poisoned(folder: Path, run_id: str, samples: str, factor: str, *how: str) -> Run:
    settings = ("objective=poison", f"objective.samples={samples}", f"objective.factor={factor}")
    return Run(folder, run_id, *STEP, *(how or ("stage.micro_batch_size=4",)), *OWN, *settings)


def saved_is_finite(run: Run) -> bool:
    file = newest(run.path / "checkpoints")
    assert file is not None
    return all(torch.isfinite(t).all() for t in torch.load(file, weights_only=True)["state_dict"].values())


@pytest.mark.parametrize("stage", [None, 2, 3], ids=["alone", "zero2", "zero3"])
def test_one_batch_of_nan_is_left_out(folder: Path, whole: Run, stage: int | None) -> None:
    sample = whole.ids()[4][0].split("/")[1]
    two = ("stage.micro_batch_size=2", "trainer.devices=2", f"trainer.strategy=deepspeed_stage_{stage}")
    run = poisoned(folder, f"one_nan_{stage}", f"[{sample}]", "nan", *(two if stage else ()))
    out = run.finish()
    assert "this step is left out" in out
    assert sample in out
    expected = [any(name.endswith(f"/{sample}") for name in names) for names in whole.ids()]
    per_step = [any(pair) for pair in zip(expected[::2], expected[1::2], strict=True)]  # it has two micro-batches
    assert run.manifest()["num_skipped_steps"] == sum(per_step) > 1
    assert saved_is_finite(run)
    assert [math.isnan(loss) for loss in run.losses()] == per_step


def test_five_of_them_in_a_row_end_the_run(folder: Path) -> None:
    run = poisoned(folder, "nans", "[" + ",".join(f"r{index}" for index in range(40)) + "]", "nan")
    run.start("trainer.checkpoint_every_n_steps=1")
    code, out = run.end()
    assert code == 2
    assert "not finite in 5 steps in a row" in out
    assert "Traceback" not in out
    assert run.manifest()["status"] == "failed"
    assert saved_is_finite(run)


def test_a_spike_of_a_million_does_no_harm(folder: Path, whole: Run) -> None:
    run = poisoned(folder, "spike", f"[{whole.ids()[4][0].split('/')[1]}]", "1e6")
    run.finish()
    assert max(run.losses()) > 1e5
    assert run.losses()[-1] < 2 * whole.losses()[-1]
    assert run.manifest()["num_skipped_steps"] == 0


def test_a_stuck_worker_ends_the_run(folder: Path) -> None:
    settings = (*STEP, *OWN, "stage.micro_batch_size=2", "processor.num_workers=1", "processor.worker_timeout_s=8")
    run = Run(folder, "stuck", *settings)
    run.start("data=stuck", "data.row=7", "trainer.max_steps=400")
    code, out = run.end()
    assert code == 2, out
    assert "timed out after 8" in out
    assert "processor.worker_timeout_s" in out
    assert "Traceback" not in out
    assert not run.left


def test_a_killed_worker_ends_the_run(folder: Path) -> None:
    run = Run(folder, "orphan", *STEP, "stage.micro_batch_size=2", "processor.num_workers=1")
    run.start("trainer.max_steps=4000")
    run.wait_for_step(3)
    (worker,) = children(run.pid)
    os.kill(worker, signal.SIGKILL)
    code, out = run.end()
    assert code == 2, out
    assert "processor.num_workers" in out
    assert "Traceback" not in out


def test_a_tracker_that_cannot_be_reached_stops_nothing(folder: Path, whole: Run) -> None:
    nowhere = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online"}
    run = Run(folder, "untracked", *STEP, "stage.micro_batch_size=2", env=nowhere)
    run.finish("logger=wandb")
    assert run.losses() == whole.losses()
    assert not run.left
