"""A process that dies or stops answering ends the run, with the reason and without leaving anything behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import STEP
from tests.faults.runs import Run, children, members

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

TWO = (*STEP, "trainer.max_steps=4000", "stage.micro_batch_size=2", "trainer.devices=2", "trainer.strategy=ddp")


@pytest.mark.parametrize("victim", ["first", "second"])
def test_a_dead_process_ends_the_run_with_the_reason(folder: Path, victim: str) -> None:
    run = Run(folder, f"dead_{victim}", *TWO)
    run.start()
    run.wait_for_step(12)
    (other,) = children(run.pid)
    killed = time.monotonic()
    os.kill(run.pid if victim == "first" else other, signal.SIGKILL)
    if victim == "first":
        run.process.join()
        while other in members(run.pid) and time.monotonic() < killed + 60:
            time.sleep(0.1)
    code, out = run.end(90)
    assert time.monotonic() - killed < 60
    assert not run.left
    if victim == "second":
        assert code == 1
        assert "process 1 of this node was ended by SIGKILL" in out or "has died or does not answer" in out
    assert run.checkpoints()


def test_a_process_that_stops_answering_is_named(folder: Path) -> None:
    run = Run(folder, "silent", *TWO, "trainer.process_group_timeout_s=25")
    run.start()
    run.wait_for_step(12)
    (other,) = children(run.pid)
    os.kill(other, signal.SIGSTOP)
    stopped = time.monotonic()
    code, out = run.end(120)
    assert code == 1
    assert time.monotonic() - stopped < 90
    assert "process 1 gives no sign of life" in out
    assert not run.left
