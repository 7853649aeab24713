"""A run on tiny parts with weights that are large, so that its answers differ."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmexp.engine import Generator, RunDir
from mmexp.engine.manifest import sha256

COLOURS = 12


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory; `pictures` beside its rows holds what it was trained on."""
    folder, draw = tmp_path_factory.mktemp("serve"), random.Random(0)
    (folder / "pictures").mkdir()
    rows = []
    for index in range(COLOURS):
        Image.new("RGB", (40, 30), (index * 20, 90, 200 - index * 15)).save(folder / "pictures" / f"{index}.png")
        said = "".join(draw.choice("abcdefgh") for _ in range(6))
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": said}]
        rows.append({"id": f"row{index}", "image": f"pictures/{index}.png", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    settings = ["encoder=tiny", "llm=tiny", "logger=none", "evaluation=none", "data=llava_json", "data.path=rows.json",
                "run_id=one", "trainer.max_steps=1"]  # fmt: skip
    command = [sys.executable, "-m", "mmexp.train", *settings]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    made = folder / "outputs" / "default" / "instruct" / "one"
    enlarge(RunDir(made))
    return made


def enlarge(run: RunDir, seed: int = 3) -> None:
    """Draws the matrices that trained anew, large enough that pictures and words decide what is said."""
    torch.manual_seed(seed)
    entries = run.manifest()["weights"]
    for name in (name for entry in entries for name in entry["files"]):
        with safe_open(run.path / name, "pt") as opened:
            about = opened.metadata()
        found = load_file(run.path / name).items()
        save_file({key: torch.randn(one.shape) * 0.3 if one.ndim > 1 else one for key, one in found},
                  run.path / name, about)  # fmt: skip
    run.update_manifest(weights=[
        {**entry, "files": {name: sha256(run.path / name) for name in entry["files"]}} for entry in entries
    ])  # fmt: skip


@pytest.fixture(scope="session")
def pictures(run: Path) -> list[Path]:
    return [run.parents[3] / "pictures" / f"{index}.png" for index in range(COLOURS)]


@pytest.fixture(scope="session")
def generator(run: Path):
    """The model of the run, to ask it without a server."""
    return load(run)


def load(run: Path) -> Generator:
    """The model of a run."""
    from mmexp.assemble import experiment_of_run, finished_run
    from mmexp.config import conf_dir, registered_targets

    skip = ("data", "optim", "trainer", "logger", "evaluation")
    exp = experiment_of_run(str(run), registered_targets([conf_dir()]), skip=skip)
    return exp.load_generator(finished_run(str(run), "run"))
