"""Which process this is, what a job calls its run, and when a job may be requeued."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmexp.engine.heartbeat import Heartbeat, lost_process
from mmexp.engine.manifest import RunDir
from mmexp.engine.ranks import is_main, shared_run_id
from mmexp.engine.signals import Interrupted, StopSignals, requeue
from mmexp.errors import ConfigError

NAMES = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK", "SLURM_JOB_ID",
         "SLURM_ARRAY_JOB_ID", "SUBMITIT_EXECUTOR", "SLURM_RESTART_COUNT", "MMEXP_RUN_ID")  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("env", "main"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0"}, True),
    ],
)
def test_one_process_of_a_job_is_the_first(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], main: bool) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert is_main() is main


def test_all_processes_of_a_job_come_to_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared_run_id(["a=1"]) is None
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    name = shared_run_id(["a=1"])
    assert name is not None
    assert name.startswith("slurm-77-")
    assert name == shared_run_id(["a=1"]) != shared_run_id(["a=2"])
    monkeypatch.setenv("MMEXP_RUN_ID", "given")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert shared_run_id(["a=1"]) == "given"


def test_torchrun_needs_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="run_id=<name>"):
        shared_run_id([])


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a fake `scontrol` was asked."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    (tmp_path / "asked").touch()
    return tmp_path / "asked"


def test_a_start_is_requeued_once_and_only_while_the_run_gets_further(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    assert requeue(run, Interrupted(signal.SIGUSR1, 5))
    assert not requeue(run, Interrupted(signal.SIGUSR2, 6))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not requeue(run, Interrupted(signal.SIGUSR1, 5))
    assert requeue(run, Interrupted(signal.SIGUSR1, 6))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "80")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue(run, Interrupted(signal.SIGUSR2, 6))
    assert asked.read_text().splitlines() == ["requeue 77", "requeue 77", "requeue 80_3"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_job_is_not_requeued(asked: Path, tmp_path: Path, signum: int) -> None:
    assert not requeue(RunDir(tmp_path), Interrupted(signum, 5))
    assert asked.read_text() == ""


def test_submitit_requeues_its_own_jobs(asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert not requeue(RunDir(tmp_path), Interrupted(signal.SIGUSR2, 5))
    assert asked.read_text() == ""


def test_a_scontrol_that_fails_is_reported_and_does_no_harm(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho no such job >&2\nexit 3\n")
    with caplog.at_level("WARNING", logger="mmexp"):
        assert not requeue(RunDir(tmp_path), Interrupted(signal.SIGUSR1, 5))
    assert "ended with code 3: no such job" in caplog.text


def test_a_signal_that_comes_while_the_processes_agree_is_kept() -> None:
    signals = StopSignals()

    def reduce(own: Any, reduce_op: str) -> Any:
        if not signals.noted:
            os.kill(os.getpid(), signal.SIGTERM)  # the others have not noted it in this round
            return torch.zeros_like(own)
        return own

    strategy = SimpleNamespace(reduce=reduce, root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(world_size=2, strategy=strategy)
    signals.install()
    try:
        assert signals.agreed(trainer) == 0
        assert signals.agreed(trainer) == signal.SIGTERM
    finally:
        signals.restore()


def test_errors_of_the_process_group_are_told_from_others() -> None:
    heartbeat = Heartbeat()
    closed = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")
    assert "has died or does not answer" in str(lost_process(closed, heartbeat, 2))
    heartbeat.silent = [3]
    assert "process 3 gives no sign of life" in str(lost_process(closed, heartbeat, 4))
    assert lost_process(closed, heartbeat, 1) is None
    assert lost_process(RuntimeError("shapes differ"), heartbeat, 4) is None
    assert lost_process(ValueError("Timed out"), heartbeat, 4) is None
