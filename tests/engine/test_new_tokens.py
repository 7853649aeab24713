"""Tokens that a template adds: their rows train in a frozen LLM, are handed on, and nothing else of it moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmexp.engine import StageJob, fit, load_weights
from mmexp.engine.module import TrainingModule
from mmexp.llm import new_rows
from mmexp.prompt import ChatTemplate
from mmexp.tuning import TrainedPart
from tests.engine.conftest import StoppedAt

Make = Callable[..., StageJob]
ALIGN = {"encoder": "frozen", "connector": "full", "llm": "frozen"}
TEMPLATE = ChatTemplate(
    name="marked", medium="{<img>}{medium}{</img>}", assistant_answer=" {turn}{<end>}",
    new_tokens=("<img>", "</img>", "<end>"),
)  # fmt: skip
ROWS = {"model.model.embed_tokens.rows", "model.lm_head.rows"}


def marked(make_job: Make, name: str, **changes: Any) -> StageJob:
    job = make_job(name, **{"policy": ALIGN, **changes})
    return replace(job, plan=replace(job.plan, template=TEMPLATE))


def run(job: StageJob) -> TrainingModule:
    return fit(job, lambda table: None)


def weights(job: StageJob) -> dict[str, torch.Tensor]:
    return load_file(job.run.weights / "llm.safetensors")


def test_only_the_new_rows_of_a_frozen_llm_train(make_job: Make) -> None:
    tables: list[list[TrainedPart]] = []
    job = marked(make_job, "align")
    before = {name: p.detach().clone() for name, p in job.plan.build().llm.named_parameters()}
    module = fit(job, tables.append)
    after = dict(module.parts()["llm"].named_parameters())
    assert {name for name in after if not torch.equal(before[name], after[name])} == ROWS
    assert set(weights(job)) == ROWS
    row = next(row for row in tables[0] if row.name == "llm")
    assert (row.policy, row.num_trained) == ("frozen, 3 new tokens full", 2 * 3 * 32)
    assert module.table()[0].num_trained == 0


def test_new_rows_can_be_left_as_they_are(make_job: Make) -> None:
    job = marked(make_job, "align", new_tokens="frozen")
    module = run(job)
    assert not (job.run.weights / "llm.safetensors").exists()
    assert module.table()[-1].policy == "frozen, 3 new tokens frozen"


def test_a_stopped_run_continues_bit_for_bit(make_job: Make, stopped_at: StoppedAt) -> None:
    whole, broken = marked(make_job, "whole"), marked(make_job, "broken")
    run(whole)
    with stopped_at(3):
        run(broken)
    run(broken)
    assert all(torch.equal(tensor, weights(broken)[name]) for name, tensor in weights(whole).items())


@pytest.mark.parametrize("leaf", ["full", "lora"])
def test_the_next_stage_starts_from_the_rows_and_hands_them_on(make_job: Make, leaf: str) -> None:
    first = marked(make_job, "align")
    run(first)
    second = marked(make_job, "instruct", init_from=[first.run], policy={**ALIGN, "llm": leaf})
    module = run(second)
    trained = new_rows(module.parts()["llm"])
    assert all(rows.requires_grad for rows in trained)
    assert not torch.equal(weights(second)["model.lm_head.rows"], weights(first)["model.lm_head.rows"])
    assert (leaf == "lora") == (set(weights(second)) == ROWS)
    alone = second.plan.build()
    load_weights(alone.parts(), second.run)
    for mine, theirs in zip(new_rows(alone.llm), trained, strict=True):
        assert torch.equal(mine, theirs)
