"""`python -m mmexp.inspect` on a run that a user trained a moment ago."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmexp.config import InspectConfig, check_own, compose
from mmexp.errors import ConfigError

pytestmark = pytest.mark.slow

RUN = "outputs/default/align/one"


def command(*args: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", *args], cwd=cwd, capture_output=True, text=True, timeout=200,
                          env={**os.environ, "COLUMNS": "200"}, check=False)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four rows, and a run of one step on them."""
    work = tmp_path_factory.mktemp("inspect")
    rows = []
    for index in range(4):
        Image.new("RGB", (40, 30), (index * 60, 90, 90)).save(work / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"number {index}"}]
        rows.append({"id": f"row{index}", "image": f"{index}.png", "conversations": turns})
    (work / "rows.json").write_text(json.dumps(rows))
    code, _, err = command(
        "mmexp.train", "encoder=tiny", "llm=tiny", "logger=none", "evaluation=none", "data=llava_json",
        "data.path=rows.json", "stage=align", "trainer.max_steps=1", "run_id=one", "connector=qformer",
        "connector.width=12", "connector.num_heads=2", "connector.num_layers=2", cwd=work,
    )  # fmt: skip
    assert code == 0, err
    return work


def test_page_and_pictures(folder: Path) -> None:
    code, out, err = command("mmexp.inspect", f"run={RUN}", "n=2", "max_new_tokens=3", cwd=folder)
    assert code == 0, err
    assert f"{RUN}/inspect.html" in out
    html = (folder / RUN / "inspect.html").read_text(encoding="utf-8")
    assert "row0" in html
    assert "row2" in html
    code, out, err = command(
        "mmexp.inspect", f"run={RUN}", "ids=[row1]", "max_new_tokens=3", "out=[new/in.html,pngs]", cwd=folder
    )
    assert code == 0, err
    assert "pngs (3 files)" in out
    assert sorted(file.name for file in (folder / "pngs").iterdir()) == [
        f"row1_{name}.png" for name in ("layers", "queries", "tokens")
    ]
    assert "row1" in (folder / "new/in.html").read_text(encoding="utf-8")


def test_a_picture_of_ones_own(folder: Path) -> None:
    code, _, err = command(
        "mmexp.inspect",
        f"run={RUN}",
        "image=2.png",
        "prompt=Who is it?",
        "max_new_tokens=2",
        "out=own.html",
        cwd=folder,
    )
    assert code == 0, err
    assert "Who is it?" in (folder / "own.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run=nowhere"], ["nowhere is no run directory", "try:"]),
        ([f"run={RUN}", "ids=[gone]"], ["no sample gone", "row0"]),
        ([f"run={RUN}", "image=gone.png", "prompt=x"], ["gone.png", "cannot be opened"]),
        ([f"run={RUN}", "n=1", "max_new_tokens=1", "layers=[7]"], ["layers: [7]", "0 to 1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_mistakes_get_one_clear_answer(folder: Path, args: list[str], words: list[str]) -> None:
    code, _, err = command("mmexp.inspect", *args, cwd=folder)
    assert code == 2, err
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["image=a.png"], "image= without prompt="),
        (["prompt=Why?"], "prompt= without image="),
        (["image=a.png", "prompt=Why?", "ids=[a]"], "one of them"),
        (["n=0"], "n: 0"),
        (["max_new_tokens=0"], "max_new_tokens: 0"),
        (["out=page.pdf"], "one .html file, one folder"),
        (["out=[a.html,b.html]"], "one .html file, one folder"),
        (["n=many"], "n"),
    ],
)
def test_half_questions_are_refused(given: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_own(InspectConfig, compose("inspect", ["run=r", *given]).cfg)
    assert check_own(InspectConfig, compose("inspect", ["run=r", "out=a.html"]).cfg).pages == [Path("a.html")]
