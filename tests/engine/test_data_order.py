"""A real run on three formats, killed in the middle without a chance to save, and continued: the same samples."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.data.readers.make import caption_tar

MIXTURE = """# Three formats.
_target_: mmexp.data.MixtureConfig
mixing: {mixing}
homogeneous: {homogeneous}
parts:
  rows: {{data: {{_target_: mmexp.data.LlavaJsonConfig, path: rows.json}}, weight: 2}}
  chats: {{data: {{_target_: mmexp.data.ShareGptConfig, path: chats.json}}, subset: "random:80%"}}
  tars: {{data: {{_target_: mmexp.data.TarsConfig, path: tars}}}}
"""
STEPS = 90


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """13 pictures with questions, 20 chats without pictures, 24 captioned pictures in three tars."""
    rows, chats = [], []
    for index in range(13):
        Image.new("RGB", (40, 30), (index * 15, 90, 90)).save(tmp_path / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"number {index}"}]
        rows.append({"id": f"row{index}", "image": f"{index}.png", "conversations": turns})
    for index in range(20):
        turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "you " * (1 + index % 4)}]
        chats.append({"id": f"chat{index}", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    for number in range(3):
        caption_tar(tmp_path / "tars" / f"{number:03d}.tar", 8, 8 * number)
    (tmp_path / "conf" / "data").mkdir(parents=True)
    return tmp_path


def start(folder: Path, run_id: str, *settings: str) -> subprocess.Popen[str]:
    line = ["encoder=tiny", "llm=tiny", "logger=none", "evaluation=none", "scale=paper", "data=three", *settings]
    line += ["stage.batch_size=4", "stage.micro_batch_size=2", f"trainer.max_steps={STEPS}", "processor.log_ids=true"]
    line += ["trainer.checkpoint_every_n_steps=15", "trainer.accelerator=cpu", "--config-dir", "conf"]
    return subprocess.Popen(
        [sys.executable, "-m", "mmexp.train", *line, f"run_id={run_id}"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def order_file(folder: Path, run_id: str) -> Path:
    return folder / "outputs" / "default" / "instruct" / run_id / "data_order.jsonl"


def recorded(folder: Path, run_id: str) -> list[list[str]]:
    lines = [json.loads(line) for line in order_file(folder, run_id).read_text(encoding="utf-8").splitlines()]
    assert [line["micro_batch"] for line in lines] == list(range(len(lines)))
    return [line["ids"] for line in lines]


def kill_after(process: subprocess.Popen[str], file: Path, num_lines: int) -> None:
    deadline = time.monotonic() + 150
    while not file.is_file() or file.read_bytes().count(b"\n") < num_lines:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixing", "homogeneous", "settings"),
    [
        ("sqrt", "false", []),
        pytest.param(
            "natural", "true", ["processor.row=packed", "processor.max_length_tokens=700"], marks=pytest.mark.slow
        ),
        pytest.param("weights", "true", ["processor.order=modality_length"], marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_continues_with_the_samples_that_were_due(folder, mixing, homogeneous, settings):
    (folder / "conf/data/three.yaml").write_text(MIXTURE.format(mixing=mixing, homogeneous=homogeneous))
    killed = start(folder, "killed", *settings)
    kill_after(killed, order_file(folder, "killed"), 61)
    before = recorded(folder, "killed")[:60]
    resumed = start(folder, "killed", *settings, "processor.num_workers=2")
    out = resumed.communicate(timeout=200)[0]
    assert resumed.returncode == 0, out
    assert "continuing from step_" in out
    whole = start(folder, "whole", *settings)
    assert whole.wait(timeout=200) == 0, whole.communicate()[0]
    expected = recorded(folder, "whole")
    assert len(expected) == 2 * STEPS
    assert {name.split("/")[0] for batch in expected for name in batch} == {"rows", "chats", "tars"}
    assert before == expected[:60]
    assert recorded(folder, "killed") == expected
