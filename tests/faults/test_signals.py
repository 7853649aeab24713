"""Signals: saved at the next step, an exit code that says so, the job requeued at most once, nothing else changed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import NUM_STEPS, STEP
from tests.faults.runs import Run, children, same_weights

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def slurm(folder: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a SLURM job, with a `scontrol` that writes down what it is asked."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "0"}


def asked(slurm: dict[str, str]) -> list[str]:
    file = Path(slurm["PATH"].split(":")[0]) / "asked"
    return file.read_text().splitlines() if file.is_file() else []


def test_out_of_time_under_slurm_requeues_once_for_each_start(folder: Path, whole: Run, slurm: dict[str, str]) -> None:
    run = Run(folder, "slurm", *STEP, "stage.micro_batch_size=2", env=slurm)
    run.start()
    run.wait_for_step(4)
    run.send(signal.SIGUSR1)
    run.send(signal.SIGUSR1)
    code, out = run.end()
    assert code == 138, out
    assert asked(slurm) == ["requeue 77"]
    assert run.manifest()["status"] == "interrupted"
    assert f"step_{run.manifest()['step']:08d}.ckpt" in run.checkpoints()
    run.start()  # the same start of the job once more: no second requeue
    run.wait_for_step(run.manifest()["step"] + 1)
    run.send(signal.SIGUSR2)
    code, out = run.end()
    assert code == 140, out
    assert "not requeued" in out
    assert asked(slurm) == ["requeue 77"]
    run.finish()
    assert run.losses() == whole.losses()
    assert run.ids() == whole.ids()
    assert same_weights(run, whole)
    assert not run.left


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_stage_3"])
def test_a_signal_to_one_process_stops_all_of_them(folder: Path, whole: Run, strategy: str) -> None:
    two = ("stage.micro_batch_size=1", "trainer.devices=2", f"trainer.strategy={strategy}")
    run = Run(folder, f"one_of_{strategy}", *STEP, *two)
    run.start()
    run.wait_for_step(3)
    (other,) = children(run.pid)
    os.kill(other, signal.SIGTERM)
    code, out = run.end()
    assert code == 143, out
    assert "Traceback" not in out
    assert not run.left
    assert run.manifest()["step"] < NUM_STEPS
    run.finish()
    assert len(run.losses()) == NUM_STEPS
    assert run.losses() == pytest.approx(whole.losses(), abs=2e-5)
