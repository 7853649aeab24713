"""The commands as a user calls them: real processes where exit codes, output or imports matter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmexp.config import Invocation, cli, compose, conf_dir, launch
from mmexp.errors import ConfigError, DataError

COMMAND = """
from mmexp.config import check, launch

def body(invocation):
    cfg = invocation.cfg
    if cfg.name == "broken":
        raise RuntimeError("a defect")
    if cfg.name == "refused":
        check(cfg, invocation.registered)
    print("ran", cfg.name, cfg.seed, cfg.stage.lr, *invocation.overrides)

if __name__ == "__main__":
    launch(body, config_name="train", module="my_command")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_command.py").write_text(COMMAND)
    return tmp_path


def call(folder: Path, *args: str, module: str = "my_command") -> subprocess.CompletedProcess[str]:
    root = str(conf_dir().parent)
    return subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": root, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--help"]])
def test_questions_are_answered_at_once_without_torch(folder: Path, flags: list[str]) -> None:
    probe = (
        "import runpy, sys\n"
        f"sys.argv = ['train', *{flags!r}]\n"
        "try: runpy.run_module('mmexp.train', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'lightning', 'pydantic'} & set(sys.modules)\n"
        "print('heavy', heavy - {'pydantic'})\n"
    )
    (folder / "probe.py").write_text(probe)
    done = call(folder, module="probe")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy set()\n")
    assert "clip_l336" in done.stdout or "_target_: mmexp.connector.MlpConfig" in done.stdout


def test_help_shows_groups_choices_and_own_ones(folder: Path) -> None:
    (folder / "mine" / "connector").mkdir(parents=True)
    (folder / "mine" / "connector" / "my_own.yaml").write_text("_target_: my.Own\n")
    text = call(folder, "--help", "--config-dir", "mine").stdout
    assert "llava15/instruct_lora" in text
    assert "mlp2x, my_own" in text.replace("none, ", "")


def test_cfg_shows_what_overrides_mean(folder: Path) -> None:
    done = call(folder, "stage.lr=3", "--cfg", "job", "-p", "stage", "connector=linear")
    assert "lr: 3\n" in done.stdout
    assert "depth" not in done.stdout


def test_a_run_writes_nothing_by_itself(folder: Path) -> None:
    done = call(folder, "name=x", "connector.depth=4")
    assert done.stdout.startswith("ran x 0 ")
    assert done.stdout.rstrip().endswith("name=x connector.depth=4")
    assert {path.name for path in folder.iterdir()} <= {"my_command.py", "__pycache__"}


def test_mistakes_end_with_two_and_no_traceback(folder: Path) -> None:
    done = call(folder, "name=refused", "conector=linear", "stage.lr=fast")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "try: connector=linear" in done.stderr
    assert "stage.lr: 'fast' is text" in done.stderr


def test_our_own_defects_keep_their_traceback(folder: Path) -> None:
    done = call(folder, "name=broken")
    assert done.returncode == 1
    assert "RuntimeError: a defect" in done.stderr


def test_a_sweep_runs_each_job_once_in_its_own_process(folder: Path) -> None:
    done = call(folder, "-m", "name=a,broken,b", "seed=1,2", "stage.lr=0.5")
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("ran"))
    assert [line.split()[:4] for line in lines] == [["ran", name, seed, "0.5"] for name in "ab" for seed in "12"]
    assert done.returncode == 1
    assert "2 of the jobs failed" in done.stderr
    assert "name=broken" in done.stderr.rsplit("jobs failed", 1)[1]
    assert {path.name for path in folder.iterdir()} <= {"my_command.py", "__pycache__"}


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--info"]])
def test_a_sweep_that_is_only_to_be_shown_is_one_mistake(folder: Path, flags: list[str]) -> None:
    done = call(folder, "-m", "seed=1,2", *flags)
    assert done.returncode == 2
    assert f"-m with {flags[0]}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sweep_with_a_mistake_starts_nothing(folder: Path) -> None:
    done = call(folder, "connector=linear,mlp3x", "-m")
    assert done.returncode == 2
    assert "try: connector=mlp2x" in done.stderr
    assert "ran" not in done.stdout


def test_a_sweep_over_own_choices(folder: Path) -> None:
    (folder / "mine" / "connector").mkdir(parents=True)
    (folder / "mine" / "connector" / "my_own.yaml").write_text("_target_: my.Own\n")
    done = call(folder, "-m", "connector=linear,my_own", "--config-dir", "mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ran default") == 2


def test_without_multirun_a_sweep_value_is_explained(folder: Path) -> None:
    done = call(folder, "seed=1,2")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_own_folder_adds_choices_and_brings_its_targets(tmp_path: Path) -> None:
    (tmp_path / "connector").mkdir()
    (tmp_path / "connector" / "mine.yaml").write_text("_target_: my_package.MyConfig\nwidth: 3\n")
    invocation = compose("train", ["connector=mine", "connector.width=4"], str(tmp_path))
    assert invocation.cfg.connector == {"_target_": "my_package.MyConfig", "width": 4}
    assert "my_package.MyConfig" in invocation.registered
    assert "my_package.MyConfig" not in compose("train", []).registered
    with pytest.raises(ConfigError, match=r"--config-dir: no such folder"):
        compose("train", [], str(tmp_path / "absent"))
    (tmp_path / "connector" / "linear.yaml").write_text("_target_: my_package.Shadow\n")
    with pytest.raises(ConfigError, match=r"connector/linear\.yaml has the name of one of ours"):
        compose("train", [], str(tmp_path))


def test_experiments_come_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /connector: linear\nname: slug\nstage: {lr: 7.0}\n"
    (tmp_path / "experiments" / "slug.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    cfg = compose("train", ["experiments=slug", "recipe=llava15", "scale=shapes"]).cfg
    assert (cfg.name, cfg.stage.lr, cfg.connector.depth) == ("slug", 7.0, 1)


def test_a_recipe_without_a_scale_is_the_published_size(capsys: pytest.CaptureFixture[str]) -> None:
    cli._say_scale.cache_clear()  # another test of this process may have heard it
    assert compose("train", ["recipe=llava15"]).cfg.stage.batch_size == 256
    assert "scale=paper" in capsys.readouterr().err
    assert compose("train", ["recipe=llava15", "scale=shapes"]).cfg.stage.batch_size < 256
    assert capsys.readouterr().err == ""


def test_a_published_part_without_a_scale_means_the_published_size() -> None:
    cfg = compose("train", ["connector=qformer", "llm=vicuna7b"]).cfg
    assert "num_queries" not in cfg.connector
    assert cfg.stage.batch_size == 128
    for laptop in (
        ["connector=qformer"],
        ["llm=shapes_lm"],
        ["encoder=tiny", "llm=tiny"],
        ["llm=vicuna7b", "scale=shapes"],
    ):
        assert compose("train", laptop).cfg.stage.batch_size == 8


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("no"), 2),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 2),
        (SystemExit(143), 143),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def body(invocation: Invocation) -> None:
        raise error

    with pytest.raises(SystemExit) as info:
        launch(body, "train", "mmexp.train", [])
    assert info.value.code == code
    assert len(capsys.readouterr().err.strip().splitlines()) <= 2


@pytest.mark.parametrize("own", [{}, {"PYTORCH_ALLOC_CONF": "x"}, {"PYTORCH_CUDA_ALLOC_CONF": "x"}])
def test_memory_of_a_gpu_can_grow_unless_the_user_decided(own: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    launch(lambda invocation: None, "train", "mmexp.train", [])
    found = {name: os.environ[name] for name in names if name in os.environ}
    assert found == (own or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"})


def test_bare_words_become_one_override() -> None:
    assert cli.gather(["x=1", "--cfg", "job"], "runs") == ["x=1", "--cfg", "job"]
    assert cli.gather(["a", "out=y", "it's b"], "runs") == ["out=y", "runs=['a','it\\'s b']"]
    with pytest.raises(ConfigError, match="both 'a' and runs="):
        cli.gather(["a", "runs=b"], "runs")
