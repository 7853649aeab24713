"""The whole of LLaVA-1.5 on real photos and conversations, from checkpoints on disk in the published layouts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.assets.make_checkpoints import make_clip, make_llama
from tests.shared_data import shared

pytestmark = pytest.mark.slow
NUM_SAMPLES = 64
STEPS = 160


def rows(source: Path, count: int) -> list[dict]:
    return json.loads(source.read_text(encoding="utf-8"))[:count]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and the first 64 records of both stages in the places where the published files lie."""
    photos = shared()
    root = tmp_path_factory.mktemp("photos")
    make_clip(root / "clip")
    make_llama(root / "llama", photos / "tokenizers" / "llama2")
    pretrain = rows(photos / "annotations" / "llava_pretrain.json", NUM_SAMPLES)
    instruct = rows(photos / "annotations" / "llava_instruct.json", NUM_SAMPLES)
    places = [("LLaVA-Pretrain", "blip_laion_cc_sbu_558k.json", pretrain), (".", "llava_v1_5_mix665k.json", instruct)]
    for folder, name, records in places:
        base = root / "data" / folder
        pictures = base / "images" if folder == "LLaVA-Pretrain" else base
        for image in {record["image"] for record in records}:
            (pictures / image).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photos / image, pictures / image)
        (base / name).write_text(json.dumps(records), encoding="utf-8")
    return root


def command(work: Path) -> list[str]:
    """What a user types: the recipe, where things are, and the size of this machine."""
    return [
        *(sys.executable, "-m", "mmexp.pipeline", "recipe=llava15", "trainer=single", "logger=none"),
        *(f"encoder.path={work}/clip", f"llm.path={work}/llama", f"paths.data={work}/data"),
        *("stage.batch_size=16", "stage.micro_batch_size=16", f"stage.max_steps={STEPS}", "stage.lr=0.003"),
        *("stage.grad_clip=1.0", "trainer.log_every_n_steps=5", "trainer.checkpoint_every_n_steps=20"),
        "run_id=photos",
    ]


def losses(run: Path) -> dict[int, float]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return {record["step"]: record["train/loss"] for record in map(json.loads, lines)}


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    """Both stages; the second is stopped in its middle by SIGTERM and continued by the same command."""
    outputs = work / "outputs" / "llava15"
    second = outputs / "llava15_instruct" / "photos"
    first_try = subprocess.Popen(command(work), cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 900
    while max(losses(second), default=0) < STEPS // 3:
        assert first_try.poll() is None, first_try.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "stage 2 did not get that far"
        time.sleep(0.2)
    first_try.send_signal(signal.SIGTERM)
    output = first_try.communicate(timeout=120)[0]
    assert first_try.returncode == 143, output[-3000:]
    manifest = json.loads((second / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    assert manifest["step"] < STEPS
    again = subprocess.run(command(work), cwd=work, capture_output=True, text=True, timeout=900, check=False)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "already finished" in again.stdout
    assert "continuing from" in again.stdout
    return second


def test_loss_falls_by_half_and_the_resumed_run_has_every_step(run: Path) -> None:
    align, instruct = losses(run.parents[1] / "llava15_align" / "photos"), losses(run)
    assert align[STEPS] < 0.97 * align[1], "through a frozen LLM of random weights a connector can say little"
    assert instruct[STEPS] < 0.5 * instruct[1]
    assert sorted(instruct) == [1, *range(5, STEPS + 1, 5)]
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"


def test_it_chats_about_its_training_images(run: Path, work: Path) -> None:
    record = rows(work / "data" / "llava_v1_5_mix665k.json", 1)[0]
    question = record["conversations"][0]["value"].replace("<image>", "").strip()
    image = work / "data" / record["image"]
    asked = subprocess.run(
        [sys.executable, "-m", "mmexp.chat", f"run={run}", f"image={image}", f"message='{question}'"],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert asked.returncode == 0, asked.stderr[-2000:]
    wanted = set(record["conversations"][1]["value"].lower().split())
    assert len(wanted & set(asked.stdout.lower().split())) >= 0.6 * len(wanted), asked.stdout


def test_its_tokens_are_those_of_the_published_recipe(run: Path, work: Path) -> None:
    """576 would be CLIP-L/336; 112 px in patches of 14 are 64 slots, in every sample, right behind `USER: `."""
    out = work / "p.jsonl"
    settings = [text for text in command(work)[3:] if not text.startswith(("run_id", "recipe"))]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mmexp.preview",
            "recipe=llava15",
            "stage=llava15/instruct",
            "n=8",
            f"out={out}",
            *settings,
        ],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for line in map(json.loads, out.read_text().splitlines()):
        (medium,) = line["media"]
        assert medium["length"] == 64
        assert line["input_ids"][0] == 1
        assert all(label == -100 for label in line["labels"][: medium["start"] + 64])
        assert any(label == 2 for label in line["labels"]), "the end of the answer is supervised"
