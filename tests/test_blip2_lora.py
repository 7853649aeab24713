"""`recipe=blip2_lora`: its plan, what it refuses, and the whole of it on real photos with a small checkpoint."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmexp.config import check, compose
from mmexp.errors import ConfigError
from mmexp.tuning import LoraSettings, apply_policy
from tests.assets.make_blip2 import NUM_QUERIES, PARTS, make_blip2
from tests.shared_data import ROOT, load_rows, shared


def checked(*overrides: str) -> Any:
    composed = compose("train", ["recipe=blip2_lora", "data.path=photos", *overrides])
    return check(composed.cfg, composed.registered)


def test_the_published_size_trains_queries_and_values_of_opt_alone() -> None:
    from mmexp.assemble import Experiment

    found = checked("scale=paper")
    model = Experiment(found).plan.empty()
    stage = found.spine.stage
    parts = apply_policy(model, stage.policy, LoraSettings(**vars(stage.lora)))
    trained = {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()}
    assert trained == {"encoder": 0, "connector": 0, "llm": 5_242_880}
    assert found.parts["llm"].quantize == "int8"
    assert (stage.lr, stage.weight_decay, stage.batch_size, stage.warmup_ratio) == (5e-5, 0.01, 2, 0.0)
    optimizer, schedule = found.parts["optim"].build(
        [{"params": list(parts["connector"].parameters()), "lr": 5e-5}], 9, 0
    )
    assert {schedule.lr_lambdas[0](step) for step in range(9)} == {1.0}
    assert optimizer.defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("override", "where", "words"),
    [
        ("stage.policy.llm=full", "stage.policy.llm", r"full, but llm\.quantize=int8"),
        ("stage.policy.llm={model: full}", "stage.policy.llm.model", "weights in few bits cannot train"),
        ("llm.dtype=float16", "llm.dtype", "bfloat16 or float32"),
        ("llm.quantize=int4", "llm.quantize", "int4"),
        ("trainer=fsdp_bf16", "trainer.strategy", r"fsdp, but llm\.quantize=int8"),
        ("trainer=deepspeed_zero3", "trainer.strategy", "whole model in each process"),
    ],
)
def test_what_few_bits_cannot_do_is_one_mistake_of_the_configuration(override: str, where: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        checked("scale=paper", override)
    assert error.value.where == where


def test_layers_that_train_beside_frozen_ones_in_16_bit_need_autocast() -> None:
    opened = ("scale=paper", "llm.quantize=none", "llm.dtype=bfloat16", "stage.policy.llm={model: full}")
    with pytest.raises(ConfigError, match=r"bfloat16, but stage\.policy\.llm\.model trains") as error:
        checked(*opened, "trainer.precision=32-true")
    assert error.value.where == "llm.dtype"
    checked(*opened, "trainer.precision=bf16-mixed")
    checked(*opened, "trainer.precision=32-true", "llm.dtype=float32")
    checked(*opened[:3], "trainer.precision=32-true", "stage.policy.llm=lora")


def test_a_missing_library_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from mmexp.assemble import Experiment
    from mmexp.engine import Recipe
    from mmexp.engine.module import TrainingModule

    exp = Experiment(checked("scale=paper"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"bitsandbytes is not installed"):
        TrainingModule(exp.plan, None, None, Recipe(policy={}, lr=1.0, num_steps=1))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP-2 folder, and six photos with a caption each."""
    root = tmp_path_factory.mktemp("blip2_lora")
    make_blip2(root / "blip2", shared("tokenizers", "opt"))
    (root / "photos").mkdir()
    rows = load_rows("annotations", "llava_pretrain.json")[:6]
    for row in rows:
        shutil.copyfile(shared(row["image"]), root / "photos" / Path(row["image"]).name)
    with (root / "photos" / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        writer.writerows([Path(row["image"]).name, row["conversations"][1]["value"]] for row in rows)
    return root


def run(work: Path, command: str, *settings: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"mmexp.{command}", *settings],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_it_trains_in_8_bit_and_transformers_answers_the_same(work: Path) -> None:
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run(work, "train", "recipe=blip2_lora", f"stage.init_from={work}/blip2", "data.path=photos", "llm.quantize=int8",
        "llm.dtype=float32", "trainer=single", "logger=none", "stage.lr=0.02", "stage.epochs=20",
        "trainer.log_every_n_steps=1", *PARTS, "processor.max_length_tokens=256", "run_id=one")  # fmt: skip
    folder = work / "outputs" / "blip2_lora" / "blip2_lora" / "one"
    losses = [json.loads(line)["train/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 60
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {(entry["part"], entry["kind"]) for entry in manifest["weights"]} == {("connector", "full"), ("llm", "lora")}
    assert manifest["padding_waste"] == 0
    written = run(work, "export", f"run={folder}", "out=exported", "image=photos/" + photo(work))
    assert "greedy answers are equal" in written
    base = load_file(work / "blip2" / "model.safetensors")
    made = load_file(work / "exported" / "model.safetensors")
    changed = {name for name in made if made[name].shape != base[name].shape or (made[name] != base[name]).any()}
    assert changed
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed), changed
    said = run(
        work, "chat", f"run={folder}", "image=photos/" + photo(work), "message=hello", "max_new_tokens=12"
    ).strip()
    model = AutoModelForImageTextToText.from_pretrained(work / "exported")
    processor = AutoProcessor.from_pretrained(work / "exported")
    picture = Image.open(work / "photos" / photo(work)).convert("RGB")
    inputs = processor(images=picture, text="", return_tensors="pt")
    assert inputs["input_ids"].shape == (1, NUM_QUERIES + 1)
    ids = model.generate(**inputs, max_new_tokens=12)[0, NUM_QUERIES + 1 :]
    assert processor.decode(ids, skip_special_tokens=True).strip() == said != ""
    alone = model.generate(pixel_values=inputs["pixel_values"], max_new_tokens=12)
    assert processor.decode(alone[0], skip_special_tokens=True).strip() == said


def photo(work: Path) -> str:
    return min(file.name for file in (work / "photos").glob("*.jpg"))
