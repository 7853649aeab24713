"""kill -9, in chains and in the middle of a write: the run that comes out is the run that was never killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmexp.engine.checkpoint import newest
from tests.faults.conftest import NUM_STEPS, STEP
from tests.faults.runs import Run, same_weights

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_chain_of_killed_runs_ends_as_the_run_that_was_never_killed(folder: Path, whole: Run) -> None:
    run = Run(folder, "killed", *STEP, "stage.micro_batch_size=2")
    for step, workers in ((15, 0), (37, 2)):
        run.start(f"processor.num_workers={workers}")
        run.wait_for_step(step)
        run.kill()
        assert len(run.losses()) < NUM_STEPS, "it was too fast to be killed"
    run.finish("processor.num_workers=1")
    assert run.losses() == whole.losses()
    assert run.ids() == whole.ids()
    assert same_weights(run, whole)


def test_a_kill_in_the_write_leaves_a_whole_checkpoint(folder: Path) -> None:
    wide = ("llm.width=256", "stage.batch_size=2", "stage.micro_batch_size=2", "trainer.max_steps=4000")
    run = Run(folder, "written", *wide, "trainer.checkpoint_every_n_steps=1")
    for _ in range(3):
        before = run.checkpoints()
        run.start()
        run.wait_for(lambda before=before: len(set(run.checkpoints()) - set(before)) >= 1)
        run.wait_for(lambda: any((run.path / "checkpoints").glob(".step_*.tmp")))
        run.kill()
        file = newest(run.path / "checkpoints")
        assert file is not None
        assert torch.load(file, weights_only=True)["global_step"] > 0
    left = {file.name for file in (run.path / "checkpoints").glob(".step_*.tmp")}
    run.start()
    run.wait_for(lambda: not left & {file.name for file in (run.path / "checkpoints").iterdir()})  # swept at the start
    run.kill()
