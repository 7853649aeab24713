"""Sweeps as a user types them, on tiny parts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmexp.config import Multirun, conf_dir
from mmexp.errors import CheckpointError, ConfigError, MmexpError
from mmexp.pipeline import Planner
from mmexp.sweep import Step, plan_train, run_sweep
from tests.sweep.conftest import FINISH, program

TINY = ["encoder=tiny", "llm=tiny", "logger=none", "evaluation=none", "data=llava_json", "data.path=rows.json"]
STUDY = """# @package _global_
defaults:
  - override /connector: linear
hydra:
  sweeper:
    params:
      connector: linear,mlp2x
      seed: 1,2
sweep: {n_jobs: 2}
name: study
"""
has_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason='needs `pip install "mmexp[optuna]"`')
has_submitit = pytest.mark.skipif(find_spec("submitit") is None, reason='needs `pip install "mmexp[submitit]"`')


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join([str(conf_dir().parent), *sys.path])}
    command = [sys.executable, "-m", *args]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def command(*args: str, cwd: Path) -> tuple[int, str, str]:
    process = start(*args, cwd=cwd)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def record(folder: Path) -> dict[str, Any]:
    [file] = folder.glob("outputs/sweeps/*/sweep.json")
    return json.loads(file.read_text())


def statuses(folder: Path) -> list[str]:
    return [job["status"] for job in record(folder)["jobs"]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 8 one-picture rows and an experiment."""
    rows = []
    for index in range(8):
        Image.new("RGB", (40, 30), (index * 30, 90, 90)).save(tmp_path / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"number {index}"}]
        rows.append({"id": f"row{index}", "image": f"{index}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "study.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(*overrides: str, module: str = "mmexp.train") -> Multirun:
    return Multirun(module=module, config_name="train", overrides=list(overrides), config_dir=None)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["conector=linear,mlp2x"], ["conector: unknown group or key", "try: connector=linear,mlp2x"]),
        (["connector=linear,mlp3x"], ["no choice 'mlp3x'", "connector=mlp2x"]),
        (["stage.lrr=1,2"], ["2 of 2 jobs cannot run", "and 1 more", "stage.lrr: StageConfig has no such setting"]),
        (["connector=linear,average_pool", "connector.factor=1,2"], ["2 of 4 jobs", "linear connector.factor=1"]),
        (["run_id=a", "seed=1,2"], ["names its runs itself"]),
        (["sweep.n_job=2"], ["sweep.n_job: SweepConfig has no such setting", "sweep.n_jobs"]),
        (["sweep.n_jobs=0"], ["sweep.n_jobs: 0", "at least 1"]),
        (["sweep.resume=nowhere"], ["nowhere: no sweep.json"]),
        (["seed=1,2", "trainer.num_nodes=2"], ["2 nodes in a job"]),
        (["experiments=study", "seed=3", "stage.lr=high,low"], ["4 of 4 jobs", "'high' is text"]),
        (["experiments=studi"], ["experiments: no choice 'studi'", "experiments=study"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)  # fmt: skip
def test_a_mistake_starts_nothing(folder: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(MmexpError) as caught:
        run_sweep(asked(*TINY, *overrides), plan_train)
    for word in words:
        assert word in str(caught.value)
    assert not (folder / "outputs").exists()


def test_an_experiment_brings_its_grid_and_the_command_line_narrows_it(folder: Path) -> None:
    from mmexp.sweep.command import _understood

    jobs, setup = _understood(asked(*TINY, "experiments=study", "seed=3", "stage.lr=1,2"))
    own = [job for job in jobs if job[-1] == "stage.lr=2"]
    assert [job[:2] for job in own] == [["connector=linear", "seed=3"], ["connector=mlp2x", "seed=3"]]
    assert len(jobs) == 4
    assert all("experiments=study" in job for job in jobs)
    assert (setup.name, setup.settings.n_jobs) == ("study", 2)


def test_several_experiments_are_one_sweep(folder: Path) -> None:
    from mmexp.sweep.command import _understood

    (folder / "experiments" / "more.yaml").write_text(STUDY.replace("seed: 1,2", "seed: 5").replace("linear,", ""))
    jobs, setup = _understood(asked(*TINY, "experiments=study,more"))
    assert [job[:2] for job in jobs[3:]] == [["connector=mlp2x", "seed=2"], ["connector=mlp2x", "seed=5"]]
    assert setup.name == "study+more"
    jobs, setup = _understood(asked(*TINY, "experiments=[study,more]"))
    assert [job[:2] for job in jobs] == [["connector=mlp2x", "seed=5"]]  # merged, the later one goes first
    assert setup.name == "study+more"


def test_grids_are_one_sweep_and_each_has_keys_of_its_own(folder: Path) -> None:
    from mmexp.sweep.command import _understood

    grids = "[{connector: linear}, {connector: average_pool, connector.factor: '2,3'}]"
    (folder / "experiments" / "pools.yaml").write_text(
        STUDY.replace("connector: linear,mlp2x", "stage.lr: 0.1").replace("n_jobs: 2", f"grids: {grids}")
    )
    jobs, _ = _understood(asked(*TINY, "experiments=pools", "seed=7"))
    own = [[text for text in job if text.startswith(("stage.", "seed", "connector"))] for job in jobs]
    assert own == [
        ["stage.lr=0.1", "seed=7", "connector=linear"],
        ["stage.lr=0.1", "seed=7", "connector=average_pool", "connector.factor=2"],
        ["stage.lr=0.1", "seed=7", "connector=average_pool", "connector.factor=3"],
    ]
    with pytest.raises(ConfigError, match=r"sweep.grids: grids, and a search"):
        _understood(asked(*TINY, "experiments=pools", "hydra/sweeper=optuna"))
    with pytest.raises(ConfigError, match="conector: unknown group or key"):
        _understood(asked(*TINY, "sweep.grids=[{conector: linear}]"))


def test_stages_are_shared_where_all_that_decides_them_is_equal(folder: Path) -> None:
    planner = Planner()
    recipe = [*TINY, "stages=[align,instruct]"]
    plain = planner([*recipe, "name=a"], None, "r0")
    other = planner([*TINY, "stages=[align,llava15/instruct_lora]", "name=b"], None, "r1")
    seeded = planner([*recipe, "seed=1"], None, "r2")
    again = planner(recipe, None, "r3")
    assert [str(step.run) for step in plain] == ["outputs/a/align/r0", "outputs/a/instruct/r0"]
    assert other[0] is plain[0]
    assert "stage.init_from=outputs/a/align/r0" in other[1].command
    assert str(other[1].run) == "outputs/b/llava15_instruct_lora/r1"
    assert not {step.run for step in seeded} & {step.run for step in plain}
    assert again == plain


@pytest.mark.slow
def test_a_forked_job_trains_what_a_new_interpreter_trains(folder: Path) -> None:
    grid = ["-m", *TINY, "seed=1,2", "stage=align", "trainer.max_steps=3", "trainer.log_every_n_steps=1"]
    losses = []
    for warm in ("true", "false"):
        code, _, err = command("mmexp.train", *grid, f"sweep.warm_start={warm}", f"sweep.dir=sweeps/{warm}", cwd=folder)
        assert code == 0, err
        jobs = json.loads((folder / "sweeps" / warm / "sweep.json").read_text())["jobs"]
        lines = [(folder / job["run"] / "metrics.jsonl").read_text().splitlines() for job in jobs]
        losses.append([[json.loads(line)["train/loss"] for line in each] for each in lines])
        log = (folder / "sweeps" / warm / "jobs" / "0.log").read_bytes()
        assert b"\x1b[" not in log, "no colours in a file"
    assert losses[0] == losses[1]
    assert [len(each) for each in losses[0]] == [3, 3]


def plan_programs(overrides: Sequence[str], config_dir: str | None, run_id: str) -> list[Step]:
    """Seed 2 fails until there is a file called `mended`; the others do nothing."""
    fails = "seed=2" in overrides and not Path("mended").exists()
    return [program("raise ValueError('seed two')" if fails else FINISH, Path("outputs") / run_id)]


def test_going_on_runs_what_is_missing_and_takes_further_values(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sweep(asked(*TINY, "seed=1,2,1"), plan_programs) == 1
    [sweep] = folder.glob("outputs/sweeps/*")
    assert "ValueError: seed two" in capsys.readouterr().out
    assert statuses(folder) == ["finished", "failed"]
    log = sweep / "jobs" / "0.log"
    before = log.stat()
    (folder / "mended").touch()
    assert run_sweep(asked(*TINY, "seed=1,2,3", f"sweep.resume={sweep}"), plan_programs) == 0
    assert statuses(folder) == ["finished"] * 3
    assert "2 of 3 jobs to run" in capsys.readouterr().out
    assert log.stat() == before
    assert [job["run_id"] for job in record(folder)["jobs"]] == [f"{sweep.name}-0{number}" for number in range(3)]
    assert run_sweep(asked(f"sweep.resume={sweep}"), plan_programs) == 0
    assert "0 of 3 jobs to run" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="none of these jobs"):
        run_sweep(asked(*TINY, "seed=7", f"sweep.resume={sweep}"), plan_programs)
    with pytest.raises(CheckpointError, match=r"a sweep of mmexp\.train"):
        run_sweep(asked(f"sweep.resume={sweep}", module="mmexp.pipeline"), plan_programs)


@pytest.mark.slow
def test_an_experiment_killed_in_the_middle_goes_on(folder: Path) -> None:
    line = [*TINY, "trainer=smoke", "experiments=study", "sweep.n_jobs=1"]
    process = start("mmexp.train", "-m", *line, cwd=folder)
    deadline = time.monotonic() + 120
    while not list(folder.glob("outputs/sweeps/*/sweep.json")) or statuses(folder)[:2] != ["finished", "running"]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    [sweep] = folder.glob("outputs/sweeps/study-*")
    first = json.loads((folder / record(folder)["jobs"][0]["run"] / "manifest.json").read_text())
    code, out, err = command("mmexp.train", f"sweep.resume={sweep.relative_to(folder)}", cwd=folder)
    assert code == 0, out + err
    assert "3 of 4 jobs to run" in out
    content = record(folder)
    assert statuses(folder) == ["finished"] * 4
    assert content["status"] == "finished"
    for job in content["jobs"]:
        manifest = json.loads((folder / job["run"] / "manifest.json").read_text())
        assert manifest["status"] == "finished"
        assert f"seed={manifest['seed']}" in job["overrides"]
        assert job["metrics"]["train/loss"] > 0
    assert json.loads((folder / content["jobs"][0]["run"] / "manifest.json").read_text()) == first


@pytest.mark.slow
def test_a_failing_job_a_signal_and_two_at_once(folder: Path) -> None:
    line = [*TINY, "data.path=nope.json,rows.json", "seed=1,2", "trainer=smoke", "trainer.max_steps=4000"]
    process = start("mmexp.train", "-m", *line, "trainer.log_every_n_steps=1", "sweep.n_jobs=2", cwd=folder)
    deadline = time.monotonic() + 200
    while sum(len(file.read_text()) > 300 for file in folder.glob("outputs/default/*/*/metrics.jsonl")) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "job 0 failed" in out
    assert "nope.json: the annotation file does not exist" in out
    assert "stopped by SIGTERM; what is missing runs with: python -m mmexp.train sweep.resume=outputs/sweeps/" in out
    content = record(folder)
    assert statuses(folder) == ["failed", "failed", "interrupted", "interrupted"]
    assert content["status"] == "interrupted"
    for job in content["jobs"][2:]:
        manifest = json.loads((folder / job["run"] / "manifest.json").read_text())
        assert manifest["status"] == "interrupted"
        assert list((folder / job["run"] / "checkpoints").glob("*.ckpt"))


@pytest.mark.slow
def test_a_recipe_swept_trains_its_first_stage_once(folder: Path) -> None:
    stages = "stages=[align,instruct],[align,llava15/instruct_lora]"
    code, out, err = command("mmexp.pipeline", "-m", *TINY, "trainer=smoke", stages, "sweep.n_jobs=2", cwd=folder)
    assert code == 0, out + err
    content = record(folder)
    runs = [[stage["run"] for stage in job["stages"]] for job in content["jobs"]]
    assert runs[0][0] == runs[1][0]
    assert runs[0][1] != runs[1][1]
    assert [job["run"] for job in content["jobs"]] == [runs[0][1], runs[1][1]]
    assert len(list(folder.glob("outputs/default/align/*"))) == 1
    for last in (runs[0][1], runs[1][1]):
        assert json.loads((folder / last / "manifest.json").read_text())["parent"] == runs[0][0]


@has_optuna
@pytest.mark.slow
def test_a_search_reads_its_metric_and_goes_on_from_its_study(folder: Path) -> None:
    import optuna

    line = [*TINY, "trainer=smoke", "hydra/sweeper=optuna", "hydra.sweeper.direction=minimize"]
    line += ["stage.lr=tag(log,interval(1e-4,1e-1))", "hydra.sweeper.sampler.seed=1", "sweep.dir=outputs/sweeps/s"]
    code, out, err = command(
        "mmexp.train", "-m", *line, "hydra.sweeper.n_trials=2", "sweep.metric=train/los", cwd=folder
    )
    assert code == 2
    assert "train/los is not" in err
    assert "try: sweep.metric=train/loss" in err
    assert statuses(folder) == ["finished"], "no further job is wasted on a metric that is not there"
    shutil.rmtree(folder / "outputs")
    line = [text for text in line if not text.startswith(("stage.lr", "hydra.sweeper.sampler"))]
    line += ["hydra/sweeper/sampler=grid", "stage.lr=choice(0.001,0.01)", "data.path=choice(rows.json,nope.json)"]
    for n_trials in (2, 4):
        again = [*line, f"hydra.sweeper.n_trials={n_trials}", "sweep.metric=train/loss"]
        code, out, err = command("mmexp.train", "-m", *again, cwd=folder)
        jobs = record(folder)["jobs"]
        assert len(jobs) == n_trials, out + err
        study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/outputs/sweeps/s/study.db")
        assert len(study.trials) == n_trials
        for trial, job in zip(study.trials, jobs, strict=True):
            has_failed = "data.path=nope.json" in job["overrides"]
            assert job["status"] == ("failed" if has_failed else "finished")
            assert trial.state.name == ("FAIL" if has_failed else "COMPLETE")
            assert has_failed or trial.value == job["metrics"]["train/loss"]
    assert sum(job["status"] == "failed" for job in jobs) == 2


@has_submitit
@pytest.mark.slow
def test_submitit_runs_the_same_jobs(folder: Path) -> None:
    line = [*TINY, "trainer=smoke", "data.path=nope.json,rows.json", "hydra/launcher=submitit_local"]
    code, out, err = command("mmexp.train", "-m", *line, cwd=folder)
    assert code == 1, out + err
    failed, finished = record(folder)["jobs"]
    assert (failed["status"], finished["status"]) == ("failed", "finished")
    assert "nope.json" in failed["reason"]
    assert finished["metrics"]["train/loss"] > 0
    assert json.loads((folder / finished["run"] / "manifest.json").read_text())["status"] == "finished"
    [sweep] = folder.glob("outputs/sweeps/*")
    shutil.copy(folder / "rows.json", folder / "nope.json")
    code, out, err = command("mmexp.train", f"sweep.resume={sweep}", cwd=folder)
    assert code == 0, out + err
    assert "1 of 2 jobs to run" in out


def test_a_plugin_that_is_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmexp.sweep.plugins.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"hydra/launcher: submitit is not installed(.|\n)*mmexp\[submitit\]"):
        run_sweep(asked(*TINY, "seed=1,2", "hydra/launcher=submitit_slurm"), plan_train)
