"""The command as people type it, and one clear answer for each mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compare.runs import MLP2X, make_run

ROOT = Path(__file__).parents[2]


def command(*args: str, cwd: Path) -> tuple[int, str, str]:
    env = {**os.environ, "COLUMNS": "160", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, env=env, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_run(tmp_path / "outputs" / "a, 'b' [c]", overrides=["connector=linear"])
    make_run(tmp_path / "outputs" / "two", config=MLP2X, overrides=["connector=mlp2x"], scores=[0, 0, 0, 1])
    make_run(tmp_path / "outputs" / "going", seed=1, status="running")
    return tmp_path


def test_places_are_typed_bare(folder: Path) -> None:
    outs = "out=[c/page.html,c/t.md,c/t.tex,c/t.csv]"
    code, out, err = command("-m", "mmexp.compare", "outputs/a, 'b' [c]", "outputs/two", outs, cwd=folder)
    assert code == 0, err
    assert "connector=mlp2x" in out
    assert {file.name for file in (folder / "c").iterdir()} == {"page.html", "t.md", "t.tex", "t.csv"}
    code, again, err = command("-m", "mmexp.compare", "runs=outputs", cwd=folder)
    assert code == 0, err
    assert "left out  " in again
    assert "not finished: running" in again


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["nothing to compare"]),
        (["nowhere"], ["nowhere: no such folder", "try: "]),
        (["outputs/going"], ["no run can be compared", "not finished: running"]),
        (["outputs", "out=page.pdf"], ["'page.pdf' ends in .pdf", ".html, .md, .tex, .csv"]),
        (["outputs", "out=outputs/two/config.yaml/page.md"], ["page.md: cannot be written: "]),
        (["outputs", "metric=accuracy"], ["no metric 'accuracy'", "heldout/vqa/exact_match"]),
        (["outputs", "baseline=qformer"], ["0 groups are called 'qformer'", "connector=mlp2x"]),
        (["outputs", "wandb=lab/p"], ["both runs and wandb"]),
        (["outputs", "group=x"], ["a group without a W&B project"]),
        (["outputs", "metrics=x"], ["unknown group or key", "try: metric=x"]),
        (["outputs", "max_samples=0"], ["expected: at least 1"]),
    ],
)
def test_mistakes(folder: Path, args: list[str], words: list[str]) -> None:
    code, out, err = command("-m", "mmexp.compare", *args, cwd=folder)
    assert code == 2, (out, err)
    for text in words:
        assert text in err, err
    assert "Traceback" not in err


def test_it_starts_without_torch(folder: Path) -> None:
    script = (
        "import sys; from mmexp.compare.__main__ import body, launch\n"
        "launch(body, 'compare', 'mmexp.compare', ['runs=outputs', 'out=page.html'])\n"
        "print([name for name in ('torch', 'lightning', 'transformers', 'wandb') if name in sys.modules])"
    )
    code, out, err = command("-c", script, cwd=folder)
    assert code == 0, err
    assert out.splitlines()[-1] == "[]"
