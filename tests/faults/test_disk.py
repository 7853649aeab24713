"""A disk that fills up: checkpoints fail with a reason, the last good one stays, and the run can be continued."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mmexp.engine.checkpoint import newest
from tests.faults.conftest import STEP
from tests.faults.runs import Run, same_weights, tmpfs

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_full_disk_keeps_the_last_checkpoint(folder: Path, whole: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with tmpfs(disk, 80) as mounted:
        if not mounted:
            pytest.skip("this user may not mount a small disk")
        run = Run(
            folder, "full", *STEP, "stage.micro_batch_size=2", f"paths.outputs={disk}", env={"TMPDIR": "/nowhere"}
        )
        run.path = disk / "default" / "instruct" / "full"
        run.start("trainer.checkpoint_every_n_steps=1")
        run.wait_for(lambda: bool(run.checkpoints()))
        fill(disk / "ballast", leave_kb=300)
        code, out = run.end()
        assert code == 2, out
        assert out.count("not written, the one before stays") >= 3
        assert "MB free on the disk" in out
        assert "Traceback" not in out
        file = newest(run.path / "checkpoints")
        assert file is not None
        assert torch.load(file, weights_only=True)["global_step"] >= 1
        (disk / "ballast").unlink()
        run.finish()
        assert run.losses() == whole.losses()
        assert same_weights(run, whole)


def fill(file: Path, leave_kb: int) -> None:
    """Takes all of the disk but so much, while others write too."""
    with file.open("wb", buffering=0) as stream:
        while (free := shutil.disk_usage(file.parent).free - leave_kb * 1024) > 0:
            stream.write(b"\0" * min(free, 2**18))
