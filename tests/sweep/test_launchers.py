"""What a job does where a launcher has put it, and what may be asked of a queue."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mmexp.errors import ConfigError
from mmexp.sweep.plan import Step
from mmexp.sweep.remote import RemoteJobs
from mmexp.sweep.submitted import require_resources
from tests.sweep.conftest import FINISH

Make = Callable[..., Step]
SAVES = (
    "import os, signal, sys, time; run = sys.argv[1]; os.makedirs(run)\n"
    "def save(number, frame): open(run + '/saved', 'w').write(str(number)); sys.exit(128 + number)\n"
    "[signal.signal(number, save) for number in (10, 12, 15)]; open(run + '/up', 'w').close(); time.sleep(60)"
)


def remote(tmp_path: Path, *steps: Step) -> RemoteJobs:
    return RemoteJobs(steps=[steps], files=[str(tmp_path / "0")], stop_file=str(tmp_path / "stop"), cwd=str(tmp_path))


def run(jobs: RemoteJobs, tmp_path: Path) -> dict[str, Any]:
    jobs.run(jobs.steps[0], tmp_path / "0.log", tmp_path / "0.json")
    return json.loads((tmp_path / "0.json").read_text())


@contextmanager
def when_up(run_dir: Path, act: Callable[[], object]) -> Iterator[None]:
    def wait() -> None:
        while not (run_dir / "up").is_file():
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def test_a_job_tells_how_it_went(tmp_path: Path, step: Make) -> None:
    state = run(remote(tmp_path, step(FINISH, "a"), step("raise ValueError('no')", "b"), step(FINISH, "c")), tmp_path)
    assert (state["status"], state["exit_code"], state["reason"]) == ("failed", 1, "ValueError: no")
    assert not (tmp_path / "runs" / "c").exists()
    assert run(remote(tmp_path, step(FINISH, "c")), tmp_path)["status"] == "finished"


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM])
def test_a_job_saves_before_the_launcher_may_requeue_it(tmp_path: Path, step: Make, signum: int) -> None:
    first = step(SAVES, "a")
    answered: list[bool] = []
    before = signal.signal(signum, lambda *args: answered.append((first.run / "saved").is_file()))
    try:
        with when_up(first.run, lambda: os.kill(os.getpid(), signum)):
            state = run(remote(tmp_path, first), tmp_path)
    finally:
        signal.signal(signum, before)
    assert state["status"] == "interrupted"
    assert (first.run / "saved").read_text() == str(int(signum))
    assert answered == ([] if signum == signal.SIGTERM else [True]), "only lack of time requeues"


def test_a_file_stops_jobs_that_run_and_those_that_come_later(tmp_path: Path, step: Make) -> None:
    first = step(SAVES, "a")
    with when_up(first.run, (tmp_path / "stop").touch):
        assert run(remote(tmp_path, first), tmp_path)["status"] == "interrupted"
    assert (first.run / "saved").is_file()
    assert run(remote(tmp_path, step(FINISH, "b")), tmp_path)["reason"] == "stopped before it began"
    assert not (tmp_path / "runs" / "b").exists()


@pytest.mark.parametrize(
    ("settings", "devices", "words"),
    [
        ({"tasks_per_node": 4}, 4, ["tasks_per_node: 4", "tasks_per_node=1"]),
        ({"nodes": 2}, 1, ["nodes: 2"]),
        ({"cpus_per_task": 2, "gpus_per_node": 4}, 4, ["cpus_per_task: 2"]),
        ({"gpus_per_node": 1}, 2, ["gpus_per_node: 1", "gpus_per_node=2"]),
        ({"nodes": 2, "tasks_per_node": 2}, 1, ["3 mistakes", "gpus_per_node: None"]),
    ],
)
def test_what_is_asked_of_the_queue_fits_the_job(settings: dict[str, int], devices: int, words: list[str]) -> None:
    steps = [Step(command=[], run=Path("a"), stage="align", devices=devices, wants_gpu=True)]
    with pytest.raises(ConfigError) as caught:
        require_resources(OmegaConf.create(settings), steps)
    for word in words:
        assert word in str(caught.value)


def test_the_preset_fits_one_gpu() -> None:
    from mmexp.config import conf_dir

    preset = OmegaConf.load(conf_dir() / "hydra" / "launcher" / "slurm_gpu.yaml")
    assert OmegaConf.is_dict(preset)
    require_resources(preset, [Step(command=[], run=Path("a"), stage="align", wants_gpu=True)])
