"""A folder with rows for real runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.runs import Run, write_rows


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows, and choices of the user's own that go wrong on purpose."""
    made = tmp_path_factory.mktemp("faults")
    write_rows(made)
    for group in ("objective", "data"):
        (made / "conf" / group).mkdir(parents=True)
    (made / "conf" / "objective" / "poison.yaml").write_text("_target_: tests.faults.poison.PoisonConfig\n")
    (made / "conf" / "data" / "stuck.yaml").write_text("_target_: tests.faults.poison.StuckConfig\n")
    return made


NUM_STEPS = 60
STEP = ("stage.batch_size=4", f"trainer.max_steps={NUM_STEPS}", "trainer.checkpoint_every_n_steps=10")


@pytest.fixture(scope="session")
def whole(folder: Path) -> Run:
    """One process, never stopped: what every run that was stopped has to equal."""
    run = Run(folder, "whole", *STEP, "stage.micro_batch_size=2")
    run.finish()
    return run
