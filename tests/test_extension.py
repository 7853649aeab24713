"""A user's own encoder, connector, LLM, data, objective and benchmark, from a package and a conf folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
from dataclasses import dataclass, replace
import torch
from torch import nn
from mmexp.connector import MlpConfig
from mmexp.contracts import Losses, Medium, Sample, Text, Turn
from mmexp.encoder import TinyVisionConfig
from mmexp.evaluation import BenchmarkConfig, Graded
from mmexp.llm import TinyLlmConfig
from mmexp.objective import NextToken
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class MyEncoder(TinyVisionConfig):
    width: int = 48


class Gate(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.gate = inner, nn.Parameter(torch.ones(()))

    def forward(self, features):
        return self.inner(features) * self.gate


@dataclass(frozen=True, kw_only=True)
class MyConnector:
    depth: int = 1

    def num_soft_tokens(self, encoder):
        return encoder.num_patches

    def build(self, encoder, llm_width):
        return Gate(MlpConfig(depth=self.depth).build(encoder, llm_width))


@dataclass(frozen=True, kw_only=True)
class MyLlm(TinyLlmConfig):
    width: int = 64


class Colours:
    def __len__(self):
        return 12

    def __getitem__(self, index):
        image = Medium(source=Image.new("RGB", (30, 30), (20 * index, 0, 0)))
        question = Turn(role="user", parts=(image, Text(text="Dark?")))
        answer = Turn(role="assistant", parts=(Text(text="yes"),))
        return Sample(id=str(index), turns=(question, answer), dataset="colours")


@dataclass(frozen=True, kw_only=True)
class MyData:
    def build(self):
        return Colours()


class Doubled(NextToken):
    def forward(self, model, batch):
        losses = super().forward(model, batch)
        return replace(losses, weights={"lm": 2.0}, report={"mine": torch.tensor(7.0)})


@dataclass(frozen=True, kw_only=True)
class MyObjective:
    def build(self, plan):
        return Doubled()


@dataclass(frozen=True, kw_only=True)
class MyBenchmark(BenchmarkConfig):
    primary = "length"

    def grade(self, samples, predictions):
        return Graded(scores=tuple(float(len(text)) for text in predictions))
"""

CHOICES = {
    "encoder/mine.yaml": "_target_: my_lab.MyEncoder",
    "connector/mine.yaml": "_target_: my_lab.MyConnector\ndepth: 2",
    "llm/mine.yaml": "_target_: my_lab.MyLlm",
    "data/mine.yaml": "_target_: my_lab.MyData",
    "objective/mine.yaml": "_target_: my_lab.MyObjective",
    "evaluation/mine.yaml": "# @package evaluation.mine\n_target_: my_lab.MyBenchmark\nstage_kinds: [instruct]\n"
    "max_new_tokens: 4\nsplits: {test: {_target_: my_lab.MyData}}",
}
CHOSEN = [f"{name.split('/')[0]}=mine" for name in CHOICES]


def mmexp(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m mmexp.<args>` with the user's package on the path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(cwd), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-m", *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package and a conf folder, and one finished run of them."""
    root = tmp_path_factory.mktemp("lab")
    (root / "my_lab.py").write_text(CODE)
    for name, text in CHOICES.items():
        (root / "my_conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "my_conf" / name).write_text(text + "\n")
    settings = ["trainer.max_steps=3", "trainer.log_every_n_steps=1", "logger=none", "run_id=one", "name=lab"]
    done = mmexp("mmexp.train", "--config-dir", "my_conf", *CHOSEN, *settings, "processor.image_fit=squash", cwd=root)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return root


def test_every_part_of_the_users_own_is_used(lab: Path) -> None:
    run = lab / "outputs" / "lab" / "instruct" / "one"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 3
    assert all(record["train/mine"] == 7.0 for record in records)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["derived"]["llm_width"] == 64
    assert manifest["derived"]["num_samples"] == 12
    assert {"length", "blind"} <= json.loads((run / "results.json").read_text())["test"]["mine"].keys()
    from safetensors.torch import load_file

    weights = load_file(run / "weights" / "connector.safetensors")
    assert tuple(weights["inner.0.weight"].shape) == (64, 48)
    assert "gate" in weights


@pytest.mark.slow
def test_the_run_answers_with_the_same_folder_and_is_refused_without(lab: Path) -> None:
    ask = ["mmexp.chat", "run=outputs/lab/instruct/one", "message=Dark?", "max_new_tokens=3"]
    assert mmexp(*ask, "--config-dir", "my_conf", cwd=lab).returncode == 0
    refused = mmexp(*ask, cwd=lab)
    assert refused.returncode == 2
    assert "my_lab.MyEncoder" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_help_lists_the_users_choices(lab: Path) -> None:
    shown = mmexp("mmexp.train", "--help", "--config-dir", "my_conf", cwd=lab).stdout
    assert "mine" in shown.split("encoder")[1].splitlines()[0]
