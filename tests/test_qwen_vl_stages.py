"""Qwen-VL's three stages as a user runs them, on tiny parts: what trains, what is handed on, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmexp.assemble import experiment
from mmexp.config import Invocation, compose
from mmexp.contracts import IGNORE
from mmexp.errors import ConfigError

STAGES = ("pretrain", "multitask", "instruct")
TOKENS = ["<|im_start|>", "<|im_end|>", "<ref>", "</ref>", "<box>", "</box>", "<img>", "</img>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, each with a question whose answer is a phrase with its box."""
    root = tmp_path_factory.mktemp("qwen_vl")
    rows = []
    for index in range(12):
        Image.new("RGB", (30, 30), (index * 20, 90, 255 - index * 20)).save(root / f"{index}.png")
        box = [round(0.05 * index, 2), 0.1, round(0.05 * index + 0.3, 2), 0.625]
        turns = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": f"star {box}"}]
        rows.append({"id": f"row{index}", "image": f"{index}.png", "box": box, "conversations": turns})
    (root / "rows.json").write_text(json.dumps(rows))
    return root


def stage(folder: Path, name: str, *further: str) -> Invocation:
    return compose("train", [
        "recipe=qwen_vl", f"stage=qwen_vl/{name}", "scale=paper", "encoder=tiny", "connector.num_queries=4", "llm=tiny",
        "data=llava_json", f"data.path={folder}/rows.json", "data.boxes=regions", "trainer=smoke", "logger=none",
        f"paths.outputs={folder}/outputs", f"paths.cache={folder}/cache", "run_id=one",
        "stage.batch_size=4", "stage.micro_batch_size=2", "stage.warmup_ratio=0",
        "evaluation=grounding", f"evaluation.grounding.splits.test.path={folder}/rows.json",
        "evaluation.grounding.max_new_tokens=4", *further,
    ])  # fmt: skip


def run_of(folder: Path, name: str) -> Path:
    return folder / "outputs" / "qwen_vl" / f"qwen_vl_{name}" / "one"


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Per stage its manifest, after all three have run."""
    from mmexp.train import train

    found, start = {}, []
    for name in STAGES:
        train(stage(folder, name, *start))
        start = [f"stage.init_from={run_of(folder, name)}"]
        found[name] = json.loads((run_of(folder, name) / "manifest.json").read_text())
    return found


def test_every_stage_trains_what_the_paper_says_and_is_scored(folder: Path, runs: dict[str, Any]) -> None:
    moved = {name: {part["name"]: part["num_trained"] for part in runs[name]["parts"]} for name in STAGES}
    total = {part["name"]: part["num_parameters"] for part in runs["multitask"]["parts"]}
    assert moved["pretrain"] == {**total, "llm": 2 * len(TOKENS) * 32}, "rows of the new tokens, in table and head"
    assert moved["multitask"] == total
    assert moved["instruct"] == {**total, "encoder": 0}
    for name in STAGES:
        figures = json.loads((run_of(folder, name) / "results.json").read_text())["test"]["grounding"]
        assert figures["num_samples"] == 12
        records = [json.loads(line) for line in (run_of(folder, name) / "metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == [1, 2]


def test_weights_go_from_stage_to_stage(folder: Path, runs: dict[str, Any]) -> None:
    handed = {name: run_of(folder, name) / "weights" for name in STAGES}
    files = {name: sorted(file.stem for file in path.glob("*.safetensors")) for name, path in handed.items()}
    assert files == {name: ["connector", "encoder", "llm"] for name in STAGES}, "the last stage hands on what came"
    second, third = (load_file(handed[name] / "encoder.safetensors") for name in ("multitask", "instruct"))
    assert all(torch.equal(tensor, third[name]) for name, tensor in second.items())
    rows = load_file(handed["pretrain"] / "llm.safetensors")
    assert all(tensor.shape[0] == len(TOKENS) for tensor in rows.values())


def test_learning_rates_fall_towards_the_picture(folder: Path, runs: dict[str, Any]) -> None:
    record = json.loads((run_of(folder, "pretrain") / "metrics.jsonl").read_text().splitlines()[0])
    assert record["lr/encoder/embedding"] == pytest.approx(record["lr/connector"] * 0.95**2)
    last = json.loads((run_of(folder, "instruct") / "metrics.jsonl").read_text().splitlines()[0])
    assert not any("encoder" in key for key in last)


ANSWER = "<ref>star</ref><box>(0,100),(300,625)</box>"
BASE = (f"<img>####</img>Where? {ANSWER}</s>", f" {ANSWER}</s>")
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <img>####</img>\nWhere?"
    f"<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>\n",
    f"<|im_start|><|im_end|>\n<|im_start|><|im_end|>\n<|im_start|>{ANSWER}<|im_end|>\n",
)


@pytest.mark.parametrize(
    ("name", "written", "supervised"),
    [("pretrain", *BASE), ("multitask", *BASE), ("instruct", *CHAT)],
)
def test_prompt_and_loss_of_each_stage(folder: Path, name: str, written: str, supervised: str) -> None:
    """As the paper's appendix and the released fine-tuning code write one sample."""
    exp = experiment(stage(folder, name))
    item = exp.plan.processor.encode(exp.checked.parts["data"].build()[0])
    tokenizer = exp.plan.tokenizer.hf
    ids = item.input_ids.clone()
    for run in item.runs:
        ids[run.start : run.start + run.length] = tokenizer.convert_tokens_to_ids("#")
    assert tokenizer.decode(ids) == written
    assert tokenizer.decode(item.input_ids[item.labels != IGNORE]) == supervised
    assert exp.plan.tokenizer.new_tokens == tuple(TOKENS)
    assert exp.checked.spine.processor.row == ("packed" if name == "multitask" else "flat")


def test_the_laptop_twin_keeps_the_tags_and_takes_the_numbers_that_its_llm_knows() -> None:
    twin = compose("train", ["recipe=qwen_vl", "stage=qwen_vl/multitask", "scale=shapes"])
    region = experiment(twin).plan.template.region
    assert region.text(_star()) == "<ref>star</ref><box> [0.12, 0.34, 0.56, 0.78]</box>"
    alone = experiment(compose("train", ["template=qwen_vl_base"])).checked.parts["template"]
    assert alone.region.text(_star()) == "<ref>star</ref><box>(120,340),(560,780)</box>"


def _star() -> Any:
    from mmexp.contracts import Region

    return Region(boxes=((0.12, 0.34, 0.56, 0.78),), phrase="star")


def test_an_encoder_with_a_fixed_position_table_refuses_another_resolution() -> None:
    overrides = ["recipe=qwen_vl", "stage=qwen_vl/multitask", "encoder=clip_l336", "encoder.image_size_px=448"]
    with pytest.raises(ConfigError) as error:
        _ = experiment(compose("train", overrides)).plan
    text = str(error.value)
    assert text.startswith("encoder.image_size_px: 448")
    assert "336, the size of the position table" in text
    assert "encoder.image_size_px=336" in text
