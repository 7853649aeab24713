"""The schedule, with real processes: order, failures, shared stages, signals, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmexp.errors import CheckpointError, ConfigError
from mmexp.sweep.devices import job_environment, require_alone, require_devices
from mmexp.sweep.plan import Step
from mmexp.sweep.record import load_record, lock
from tests.sweep.conftest import FINISH, Sweep

Make = Callable[..., Step]
NAP = "import time; time.sleep(60)"


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_failed_job_does_not_end_the_sweep(sweep: Sweep, step: Make) -> None:
    sweep.add(step(FINISH, "a"))
    sweep.add(step("print('before'); raise ValueError('no such thing')", "b"))
    sweep.add(step("import os; os.kill(os.getpid(), 9)", "c"))
    sweep.add(step(FINISH, "d"))
    assert sweep.run() == 0
    saved = load_record(sweep.record.path)
    assert [job.status for job in saved.jobs] == ["finished", "failed", "failed", "finished"]
    assert [job.exit_code for job in saved.jobs] == [0, 1, 137, 0]
    assert saved.jobs[1].reason == "ValueError: no such thing"
    assert "SIGKILL" in str(saved.jobs[2].reason)
    assert "before" in saved.log(saved.jobs[1]).read_text()
    lines = sweep.shown.getvalue().splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [
        ["job", "0", "running"], ["job", "0", "finished"], ["job", "1", "running"],
    ]  # fmt: skip


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_as_many_jobs_at_once_as_asked(sweep: Sweep, step: Make, n_jobs: int, tmp_path: Path) -> None:
    source = (
        "import os, sys, time, pathlib; here = pathlib.Path(os.environ['BUSY']); mine = here / str(os.getpid())\n"
        "mine.touch(); time.sleep(0.4); count = len(list(here.iterdir()))\n"
        "(here.parent / 'counts').open('a').write(f'{count}\\n'); mine.unlink()"
    )
    (tmp_path / "busy").mkdir()
    os.environ["BUSY"] = str(tmp_path / "busy")
    try:
        for name in "abcdef":
            sweep.add(step(source, name))
        sweep.run(n_jobs)
    finally:
        del os.environ["BUSY"]
    counts = [int(line) for line in (tmp_path / "counts").read_text().splitlines()]
    assert len(counts) == 6
    assert max(counts) == n_jobs
    assert set(sweep.statuses) == {"finished"}


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_a_shared_stage_is_trained_once_and_the_others_wait(sweep: Sweep, step: Make, n_jobs: int) -> None:
    note = "import sys, time; open(sys.argv[1] + '.starts', 'a').write('x'); time.sleep(0.2); " + FINISH
    needs = "import os, sys; assert os.path.isfile(sys.argv[1].rsplit('-', 1)[0] + '/manifest.json'); " + FINISH
    Path(sweep.record.path.parent / "runs").mkdir()
    for cell in range(4):
        sweep.add(step(note, "first"), step(needs, f"first-{cell}", "instruct"))
    sweep.run(n_jobs)
    assert sweep.statuses == ["finished"] * 4
    assert (sweep.record.path.parent / "runs" / "first.starts").read_text() == "x"
    assert [job.stages[0]["trained_by"] for job in sweep.record.jobs] == [0, 0, 0, 0]
    assert [job.stages[1]["trained_by"] for job in sweep.record.jobs] == [0, 1, 2, 3]


def test_a_shared_stage_that_fails_fails_all_that_need_it(sweep: Sweep, step: Make) -> None:
    for cell in range(2):
        sweep.add(step("raise ValueError('diverged')", "first"), step(FINISH, f"second{cell}", "instruct"))
    sweep.add(step(FINISH, "other"), step(FINISH, "third", "instruct"))
    sweep.run()
    assert sweep.statuses == ["failed", "failed", "finished"]
    assert "job 0" in str(sweep.record.jobs[1].reason)
    assert "diverged" in str(sweep.record.jobs[1].reason)


def test_a_finished_run_is_not_started_again(sweep: Sweep, step: Make) -> None:
    sweep.add(step(FINISH, "a"))
    sweep.run()
    size = sweep.record.log(sweep.record.jobs[0]).stat().st_size
    sweep.plans[0] = [step("raise SystemExit(3)", "a")]
    sweep.record.jobs[0].status = "queued"
    sweep.run()
    assert sweep.statuses == ["finished"]
    assert sweep.record.log(sweep.record.jobs[0]).stat().st_size == size


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_jobs_which_save(sweep: Sweep, step: Make, signum: int) -> None:
    source = (
        "import os, signal, sys, time; run = sys.argv[1]; os.makedirs(run)\n"
        f"def save(*args): open(run + '/saved', 'w').close(); print('stopped by x; saved'); sys.exit({128 + signum})\n"
        f"signal.signal({int(signum)}, save); open(run + '/up', 'w').close()\n" + NAP
    )
    first = step(source, "a")
    sweep.add(first)
    sweep.add(step(FINISH, "b"))

    def send() -> None:
        wait_for((first.run / "up").is_file)
        os.kill(os.getpid(), signum)

    threading.Thread(target=send).start()
    assert sweep.run() == signum
    assert sweep.statuses == ["interrupted", "queued"]
    assert (first.run / "saved").is_file()
    assert sweep.record.jobs[0].reason == "stopped by x"
    assert load_record(sweep.record.path).jobs[0].exit_code == 128 + signum


def test_nothing_that_a_job_started_is_left(sweep: Sweep, step: Make) -> None:
    source = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open(sys.argv[1] + '.pid', 'w').write(str(child.pid)); sys.exit(3)"
    )
    Path(sweep.record.path.parent / "runs").mkdir()
    sweep.add(step(source, "a"))
    sweep.run()
    pid = int((sweep.record.path.parent / "runs" / "a.pid").read_text())
    assert sweep.statuses == ["failed"]
    wait_for(lambda: not alive(pid))


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.sweep.conftest import FINISH, Sweep, program
if __name__ == "__main__":
    sweep = Sweep(Path("sweep"))
    sweep.add(program(FINISH, Path("runs/a")))
    sweep.add(program({source!r}, Path("runs/b")))
    sweep.run()
"""


def test_kill_9_of_the_sweep_leaves_no_job_and_loses_none(tmp_path: Path) -> None:
    source = (
        "import os, signal, subprocess, sys, time; run = sys.argv[1]; os.makedirs(run)\n"
        "rank = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "def save(*args): time.sleep(0.5); open(run + '/saved', 'w').close(); os._exit(143)\n"
        "signal.signal(15, save); open(run + '/pids', 'w').write(f'{os.getpid()} {rank.pid}'); time.sleep(60)"
    )
    root = str(Path(__file__).resolve().parents[2])
    (tmp_path / "run_it.py").write_text(textwrap.dedent(SCRIPT.format(root=root, source=source)))
    process = subprocess.Popen([sys.executable, "run_it.py"], cwd=tmp_path)
    pids = tmp_path / "runs" / "b" / "pids"
    wait_for(lambda: pids.is_file() and len(pids.read_text().split()) == 2)
    process.kill()
    process.wait()
    started = time.monotonic()
    with lock(tmp_path / "sweep"):  # waits until the job has saved itself
        assert (tmp_path / "runs" / "b" / "saved").is_file()
    assert time.monotonic() - started < 20
    assert not any(alive(int(pid)) for pid in pids.read_text().split())
    assert [job.status for job in load_record(tmp_path / "sweep").jobs] == ["finished", "running"]


def test_two_sweeps_cannot_work_in_one_directory(sweep: Sweep) -> None:
    with lock(sweep.record.path), pytest.raises(CheckpointError, match=f"process {os.getpid()} is working"):
        lock(sweep.record.path)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no sweep.json"), ("{", "no record"), ('{"version": 9}', "version 1"), ("[]", "no record")],
)
def test_a_directory_that_is_no_sweep(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(CheckpointError, match=words):
        load_record(tmp_path)


def test_the_record_holds_what_readers_rely_on(sweep: Sweep, step: Make) -> None:
    sweep.add(step(FINISH, "a"))
    sweep.run()
    content = json.loads((sweep.record.path / "sweep.json").read_text())
    assert {"version", "command", "name", "started", "status", "jobs"} <= content.keys()
    names = {"number", "overrides", "run_id", "run", "status", "exit_code", "reason", "wall_s", "metrics"}
    assert names <= content["jobs"][0].keys()
    assert not [path for path in sweep.record.path.iterdir() if path.suffix == ".tmp"]


def gpu_step(step: Make, devices: int) -> Step:
    made = step("", "a", devices=devices)
    return Step(command=made.command, run=made.run, stage="align", devices=devices, is_on_gpu=True)


def test_jobs_that_would_share_a_gpu_are_refused(step: Make) -> None:
    two, one = gpu_step(step, 2), gpu_step(step, 1)
    require_devices([one, two], 1, [])
    require_devices([two], 2, list("0123"))
    require_devices([step("", "cpu", devices=2)], 8, [])
    with pytest.raises(ConfigError, match=r"needs 4 GPUs, and 3 are visible(.|\n)*sweep.n_jobs=1"):
        require_devices([one, two], 2, list("012"))
    with pytest.raises(ConfigError, match=r"(.|\n)*sweep.n_jobs=3"):
        require_devices([one], 4, list("012"))


def test_a_job_sees_its_own_gpus_and_its_share_of_threads(step: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmexp.sweep.devices._cores", lambda: 12)
    base = {"RANK": "1", "MASTER_PORT": "1", "PATH": "/bin"}
    assert job_environment(gpu_step(step, 2), 1, [], base) == {"PATH": "/bin"}
    mine = job_environment(gpu_step(step, 2), 3, ["2", "5"], base)
    assert mine == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "2,5", "OMP_NUM_THREADS": "2"}
    assert job_environment(step("", "a"), 4, [], {"OMP_NUM_THREADS": "7"}) == {"OMP_NUM_THREADS": "7"}


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_a_sweep_in_each_process_of_a_job_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    require_alone()
    monkeypatch.setenv(name, "4")
    with pytest.raises(ConfigError, match="each of 4 processes"):
        require_alone()
