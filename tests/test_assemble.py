"""When a run directory may be continued by the command that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmexp.assemble import _require_same, num_workers
from mmexp.engine import RunDir, TrainerConfig
from mmexp.engine.manifest import open_run_dir
from mmexp.errors import CheckpointError


def test_a_run_of_an_earlier_version_lacks_settings_and_means_their_defaults(tmp_path):
    saved = {"processor": {"row": "flat", "num_workers": 0}, "seed": 0}
    run = RunDir(tmp_path)
    _require_same(
        saved, {"processor": {"row": "flat", "order": "shuffled", "num_workers": 4}, "seed": 0}, run, inexact=False
    )
    for other in ({"row": "flat", "order": "length"}, {"row": "packed"}):
        with pytest.raises(CheckpointError, match="other settings of processor"):
            _require_same(saved, {"processor": other, "seed": 0}, run, inexact=False)


@pytest.mark.parametrize(
    ("asked", "accelerator", "devices", "expected"),
    [
        (None, "gpu", 1, 4),
        (None, "gpu", 4, 3),
        (None, "gpu", 16, 0),
        (None, "cpu", 1, 0),
        (0, "gpu", 1, 0),
        (7, "cpu", 1, 7),
    ],
)
def test_workers_without_a_wish(
    asked: int | None, accelerator: str, devices: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert num_workers(asked, TrainerConfig(accelerator=accelerator, devices=devices)) == expected


def test_a_run_is_blank_until_something_is_trained_in_it(tmp_path: Path) -> None:
    run = open_run_dir(str(tmp_path), "name", "stage", "one", seed=0)
    (run.path / "metrics.jsonl").touch()
    run.update_manifest(status="failed")
    assert run.is_blank
    for file in (run.path / "metrics.jsonl", run.checkpoints / "step_00000001.ckpt", run.weights / "llm.safetensors"):
        file.write_text("x")
        assert not run.is_blank
        file.unlink()
