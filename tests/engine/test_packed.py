"""Packed rows train as unpacked ones: the same loss, the same gradients, the right number of steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmexp.data import Collator, MixtureConfig, PartConfig
from mmexp.engine import StageJob, fit
from mmexp.engine.module import TrainingModule
from mmexp.objective import NextTokenConfig

Make = Callable[..., StageJob]


def gradients(job: StageJob, items: list[Any], row: str, capacity: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of these items laid out in one way, in float64."""
    torch.manual_seed(0)
    model = job.plan.build().double()
    batch = Collator(pad_id=job.plan.tokenizer.pad_id, row=row, capacity=capacity)(items)
    batch.media["image"] = batch.media["image"].double()  # type: ignore[index]
    losses = NextTokenConfig().build(job.plan)(model, batch)
    loss = losses.sums["next_token"] if "next_token" in losses.sums else next(iter(losses.sums.values()))
    loss.backward()
    return float(loss), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_of_unpacked_rows(make_job: Make, float64: None) -> None:
    job = make_job()
    data = job.data.build()
    items = [job.plan.processor.encode(data[index]) for index in range(12)]
    packed_batch = Collator(pad_id=0, row="packed", capacity=90)(items)
    assert 1 < packed_batch.input_ids.shape[0] < 12
    padded, packed = gradients(job, items, "padded"), gradients(job, items, "packed", 90)
    assert packed[0] == pytest.approx(padded[0], rel=1e-12)
    assert packed[1].keys() == padded[1].keys()
    assert len(packed[1]) > 10
    for name, gradient in padded[1].items():
        torch.testing.assert_close(packed[1][name], gradient, atol=1e-12, rtol=1e-9)


def run(job: StageJob) -> TrainingModule:
    return fit(job, lambda table: None)


def test_an_epoch_of_packed_rows(make_job: Make, tmp_path: Any) -> None:
    job = make_job("packed", max_steps=None, row="packed", log_ids=True, cache=tmp_path / "cache", epochs=2.0)
    run(job)
    manifest = job.run.manifest()
    rows, steps = manifest["derived"]["num_rows_per_epoch"], manifest["derived"]["num_steps"]
    assert 1 < rows < 21
    assert steps == -(-2 * rows // job.batch_size)
    assert len(list((tmp_path / "cache" / "lengths").iterdir())) == 1
    lines = [json.loads(line) for line in (job.run.path / "data_order.jsonl").read_text().splitlines()]
    assert [line["micro_batch"] for line in lines] == list(range(steps * job.accumulate))
    ids = [name for line in lines for name in line["ids"]]
    assert sorted(ids[:21]) == sorted(f"rows/r{index}" for index in range(21)), "one epoch, exactly"
    assert 0 <= manifest["padding_waste"] < 0.2
    metrics = [json.loads(line) for line in (job.run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["data/padding_waste"] < 0.5 for line in metrics)


def test_steps_of_mixtures_follow_their_epoch(make_job: Make) -> None:
    data = make_job().data
    natural = MixtureConfig(parts={"a": PartConfig(data=data), "b": PartConfig(data=data, weight=2, subset="first:5")})
    assert run_steps(make_job("natural", max_steps=None, data=natural)) == -(-31 // 4)
    even = MixtureConfig(parts=natural.parts, mixing="weights", epoch_samples=12)
    assert run_steps(make_job("even", max_steps=None, data=even)) == 3


def run_steps(job: StageJob) -> int:
    run(job)
    return job.run.manifest()["derived"]["num_steps"]


def test_dropped_samples_are_counted_by_part(make_job: Make, tmp_path: Any) -> None:
    def talk(answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]

    rows = [{"id": str(n), "conversations": talk("x" * 3000 if n == 3 else "yes")} for n in range(40)]
    (tmp_path / "text.json").write_text(json.dumps(rows))
    base = make_job().data
    long = type(base)(path=str(tmp_path / "text.json"))
    data = MixtureConfig(parts={"fine": PartConfig(data=base), "odd": PartConfig(data=long)})
    job = make_job("drops", max_steps=None, data=data, log_ids=True)
    run(job)
    assert job.run.manifest()["dropped"] == {"odd": {"too_long": 1}}
    lines = [json.loads(line) for line in (job.run.path / "data_order.jsonl").read_text().splitlines()]
    assert [line["dropped"] for line in lines if "dropped" in line] == [{"too_long": ["odd/3"]}]


def test_a_run_may_begin_with_text_alone(make_job: Make, tmp_path: Any) -> None:
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "text.json").write_text(json.dumps([{"id": str(n), "conversations": talk} for n in range(12)]))
    pictures = make_job().data
    parts = {
        "text": PartConfig(data=type(pictures)(path=str(tmp_path / "text.json"))),
        "all": PartConfig(data=pictures),
    }
    job = make_job("mixed", data=MixtureConfig(parts=parts, homogeneous=True), log_ids=True, max_steps=8, seed=1)
    run(job)
    lines = (job.run.path / "data_order.jsonl").read_text().splitlines()
    batches = [{name.split("/")[0] for name in json.loads(line)["ids"]} for line in lines]
    assert batches[0] == batches[1] == batches[2] == {"text"}, "another seed, if the order was changed on purpose"
    assert {"all"} in batches
    assert job.run.manifest()["status"] == "trained"
