"""Pictures of several views through a whole stage: counts agree, rows end with what is learned, and it is handed on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmexp.connector import AveragePoolConfig, MlpConfig
from mmexp.data import Collator, TrainingData
from mmexp.encoder import TinyVisionConfig
from mmexp.engine import Generator, StageJob, fit
from mmexp.errors import ConfigError, SpliceError
from mmexp.llm import Sampling
from mmexp.model import InputPlan
from mmexp.objective import RegionContrastiveConfig
from mmexp.prompt import AnyRes, DynamicTiles

Make = Callable[..., StageJob]
RULES = {"tiles": DynamicTiles(max_tiles=4), "anyres": AnyRes(), "flat": AnyRes(unpad=False, newline=False)}
RULES["shrunk"] = AnyRes(max_views=1)


def tiled(job: StageJob, rule) -> StageJob:
    return replace(job, plan=replace(job.plan, tiling=rule))


def batch_of(job: StageJob, rows=range(8), row: str = "flat"):
    data = TrainingData(job.data.build(), job.plan.processor)
    return Collator(pad_id=job.plan.tokenizer.pad_id, row=row)([data[index] for index in rows])


@pytest.mark.parametrize("rule", RULES)
def test_stage_on_views_learns_and_answers(make_job: Make, rule: str) -> None:
    job = tiled(make_job(rule, max_steps=8), RULES[rule])
    module = fit(job, lambda table: None)
    losses = [json.loads(line)["train/loss"] for line in (job.run.path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    written = load_file(job.run.weights / "connector.safetensors")
    assert ("newline" in written) == (rule in ("anyres", "shrunk"))
    if "newline" in written:
        assert not torch.equal(written["newline"], job.plan.build().inputs["image"].connector.newline)
    rows = job.data.build()
    asked = [replace(rows[index], turns=rows[index].turns[:1]) for index in (0, 3, 4)]
    answers = Generator(module.model, job.plan).predict(asked, Sampling(max_new_tokens=3))
    assert len(answers) == 3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("row", ["flat", "padded"])
def test_batch_of_views_agrees_with_its_items(make_job: Make, rule: str, row: str) -> None:
    """Rows 3 has two pictures, row 4 none; the pictures' sizes differ."""
    job = tiled(make_job("b"), RULES[rule])
    batch = batch_of(job, row=row)
    views, lengths = batch.views["image"], batch.slot_lengths["image"]
    assert len(views) == len(lengths) == len(batch.media_owners["image"]) == 8
    assert batch.media["image"].shape == (sum(views), 3, 28, 28)
    assert int(batch.slots["image"].sum()) == sum(lengths)
    model = job.plan.build().eval()
    with torch.no_grad():
        embeds, soft = model.embed(batch)
        assert soft["image"].shape[:2] == (sum(views), 4)
        together = embeds[batch.slots["image"]]
        alone = []  # every sample by itself: an offset into another sample's views would show
        for index in range(8):
            one = batch_of(job, [index])
            if one.media:
                alone.append(model.embed(one)[0][one.slots["image"]])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_tiles_stand_in_reading_order_with_the_whole_last(make_job: Make) -> None:
    job = tiled(make_job("o"), RULES["tiles"])
    batch = batch_of(job, [20])
    model = job.plan.build().eval()
    with torch.no_grad():
        embeds, soft = model.embed(batch)
    assert torch.equal(embeds[batch.slots["image"]], soft["image"].flatten(0, 1))


def test_text_only_batch_still_reaches_the_row_end(make_job: Make) -> None:
    """Otherwise a rank without a picture would miss the gradient exchange of `newline`."""
    job = tiled(make_job("t"), RULES["anyres"])
    model = job.plan.build().train()
    model(batch_of(job, [4])).hidden.sum().backward()
    connector = model.inputs["image"].connector
    assert connector.newline.grad is not None
    assert connector.newline.grad.abs().sum() == 0
    model.zero_grad(set_to_none=True)
    model(batch_of(job, [0])).hidden.pow(2).sum().backward()
    assert connector.newline.grad.abs().sum() > 0


def test_wrong_number_of_views_names_the_sample(make_job: Make) -> None:
    job = tiled(make_job("w"), RULES["tiles"])
    batch, model = batch_of(job), job.plan.build()
    views = batch.views["image"]
    wrong = replace(batch, views={"image": (views[0] + 1, *views[1:-1], views[-1] - 1)})
    with pytest.raises(SpliceError, match="sample r0"):
        model.embed(wrong)
    with pytest.raises(SpliceError, match="laid out"):
        model.embed(replace(batch, views={"image": views[:-1]}))
    rows = tiled(make_job("w2"), RULES["anyres"])
    batch = batch_of(rows)
    with pytest.raises(SpliceError, match="slots laid out"):
        rows.plan.build().embed(replace(batch, gather={"image": batch.gather["image"][:-1]}))


def test_parts_that_do_not_fit_are_refused_before_weights_load(make_job: Make) -> None:
    plan = make_job("r").plan
    pooled = InputPlan(encoder=TinyVisionConfig(), connector=AveragePoolConfig())
    assert replace(plan, inputs={"image": pooled}, tiling=AnyRes()).processor

    class Bag(MlpConfig):
        """A connector whose soft tokens have no place."""

        soft_grid = None

    with pytest.raises(ConfigError, match="no place in the picture") as error:
        replace(plan, inputs={"image": InputPlan(encoder=TinyVisionConfig(), connector=Bag())}, tiling=AnyRes())
    assert "image_fit=tiles" in error.value.fix
    with pytest.raises(ConfigError, match="tiles"):
        RegionContrastiveConfig().build(replace(plan, tiling=DynamicTiles()))
