"""What runs are called in trackers, and W&B as the commands use it: without a key, with nobody to ask."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmexp.config import compose
from mmexp.tracking import short_name
from tests.engine.offline import OfflineRun

pytestmark = pytest.mark.slow

TINY = ["encoder=tiny", "llm=tiny", "data=llava_json", "data.path=rows.json", "trainer=smoke", "stage.batch_size=2",
        "stage.micro_batch_size=2"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 8 one-picture rows."""
    rows = []
    for index in range(8):
        Image.new("RGB", (40, 30), (index * 15, 90, 90)).save(tmp_path / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"number {index}"}]
        rows.append({"id": f"row{index}", "image": f"{index}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def command(folder: Path, *args: str, **env: str) -> tuple[int, str]:
    """Exit code and everything said, of a command without a key."""
    without = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    own = {"NETRC": str(folder / "netrc"), "WANDB_DATA_DIR": str(folder / "staging"), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", *args], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=200, check=False, env={**without, **own, **env},
    )  # fmt: skip
    return done.returncode, done.stdout


def test_training_and_evaluation_are_runs_of_one_group(folder: Path) -> None:
    questions = ["evaluation=vqa", "evaluation.vqa.splits.test.path=rows.json"]
    named = ["run_id=one", "connector=linear", "seed=2", "llm.width=48"]
    code, out = command(folder, "mmexp.train", *TINY, *questions, *named, MMEXP_SWEEP="widths")
    assert code == 0, out
    run = folder / "outputs" / "default" / "instruct" / "one"
    trained = OfflineRun(run)
    assert shlex.split(out.splitlines()[-1]) == ["W&B", "wandb", "sync", str(trained.folder.relative_to(folder))]
    assert (trained.run.run_group, trained.run.job_type) == ("widths", "instruct")
    assert trained.run.run_id == json.loads((run / "manifest.json").read_text())["tracking_id"]
    expected = "encoder=tiny llm=tiny data=llava_json data.path=rows.json stage.batch_size=2 stage.micro_batch_size=2"
    assert trained.run.display_name.startswith(expected)
    assert set(trained.run.tags) == {"tiny", "linear", "instruct"}
    assert trained.config["run_id"] == "one"
    results = json.loads((run / "results.json").read_text())["test"]["vqa"]
    for metric, value in results.items():
        assert trained.summary[f"val/test/vqa/{metric}"] == pytest.approx(value)
    assert len(trained.table("samples/test/vqa")["data"]) == 8

    code, out = command(folder, "mmexp.evaluate", f"run={run}", "limit=4", "track=false")
    assert code == 0, out
    assert "wandb sync" not in out
    code, out = command(folder, "mmexp.evaluate", f"run={run}", "limit=4")
    assert code == 0, out
    evaluated = OfflineRun(run)
    assert (evaluated.run.run_group, evaluated.run.job_type) == ("widths", "evaluate")
    assert evaluated.config["evaluates"] == trained.run.run_id != evaluated.run.run_id
    assert evaluated.summary["val/test/vqa/num_samples"] == 4


def test_a_mistake_while_training_ends_the_run_with_the_code_of_the_command(folder: Path) -> None:
    code, out = command(folder, "mmexp.train", *TINY, "run_id=one", "evaluation=vqa",
                        "evaluation.vqa.splits.test.path=missing.json")  # fmt: skip
    assert code == 2, out
    run = folder / "outputs" / "default" / "instruct" / "one"
    assert OfflineRun(run).exit_code == 2
    assert "wandb sync" in out


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["connector=qformer", "stage=align", "seed=2", "run_id=x", "recipe=llava15"], "connector=qformer seed=2"),
        (
            ["stage.lr=1e-3", "stage.init_from=outputs/a/b", "paths.outputs=/big", "logger.wandb.project=p"],
            "stage.lr=1e-3",
        ),
        (["data.path=/data/deep/rows.json", "++llm.width=48", "~world"], "data.path=rows.json ++llm.width=48 ~world"),
        (["logger=none"], ""),
    ],
)
def test_names_are_what_is_tried(overrides: list[str], name: str) -> None:
    assert short_name(overrides) == name


def test_long_names_are_cut() -> None:
    name = short_name(f"stage.lr_by_part.part{index}=0.001" for index in range(20))
    assert len(name) == 120
    assert name.endswith("...")


def test_choices_are_those_of_the_command_line_and_of_recipes() -> None:
    choices = compose("train", ["recipe=llava15", "connector=qformer"]).choices
    assert choices["connector"] == "qformer"
    assert choices["recipe"] == "llava15"
    assert choices["encoder"] == "clip_l336" or choices["encoder"] == "shapes_vit"
    assert "experiments" not in choices
    assert all("/" not in group for group in choices)
