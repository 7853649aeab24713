"""Rows that share a beginning train as samples of their own: the same loss, the same gradients, to the end of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mmexp.data import LlavaJsonConfig
from mmexp.engine import StageJob, fit
from tests.engine.test_packed import gradients

Make = Callable[..., StageJob]


@pytest.fixture
def captions(rows: Path, tmp_path: Path) -> LlavaJsonConfig:
    """Five pictures with three texts each, and two texts without a picture."""
    records = []
    for index in range(15):
        question = "<image>" if index % 2 else f"<image>\nWhat is {index}?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"number {index} " * (1 + index % 3)}]
        records.append({"id": f"r{index}", "image": f"{5 + index % 5}.png", "conversations": turns})
    for index in (15, 16):
        turns = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": f"hi {index}"}]
        records.append({"id": f"r{index}", "conversations": turns})
    (tmp_path / "captions.json").write_text(json.dumps(records))
    return LlavaJsonConfig(path=str(tmp_path / "captions.json"), image_root=str(rows.parent))


def test_loss_and_gradients_are_those_of_samples_apart(
    make_job: Make, captions: LlavaJsonConfig, float64: None
) -> None:
    job = make_job(data=captions)
    data = job.data.build()
    by_picture = sorted(range(15), key=lambda index: index % 5)
    items = [job.plan.processor.encode(data[index]) for index in [*by_picture, 15, 16]]
    flat, shared = gradients(job, items, "flat"), gradients(job, items, "shared")
    assert shared[0] == pytest.approx(flat[0], rel=1e-12)
    assert shared[1].keys() == flat[1].keys()
    assert len(shared[1]) > 10
    for name, gradient in flat[1].items():
        bound = 1e-12 + 1e-6 * float(
            gradient.abs().max()
        )  # the head makes gradients in float32, and here in another order
        torch.testing.assert_close(shared[1][name], gradient, atol=bound, rtol=0)


def test_an_epoch_of_shared_rows(make_job: Make, captions: LlavaJsonConfig) -> None:
    job = make_job("shared", data=captions, max_steps=None, row="shared", log_ids=True, epochs=2.0)
    fit(job, lambda table: None)
    manifest = job.run.manifest()
    assert manifest["derived"]["num_rows_per_epoch"] == 7
    assert manifest["derived"]["num_steps"] == -(-2 * 7 // job.batch_size)
    lines = [json.loads(line) for line in (job.run.path / "data_order.jsonl").read_text().splitlines()]
    ids = [name for line in lines for name in line["ids"]]
    assert sorted(name.split("/")[-1] for name in ids[:17]) == sorted(f"r{index}" for index in range(17)), "one epoch"
    pictures = [int(name.split("/r")[-1]) % 5 for name in ids[:17] if name.split("/r")[-1] not in ("15", "16")]
    assert sum(one != other for one, other in pairwise(pictures)) == 4, "side by side"
