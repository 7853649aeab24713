"""Norms of gradients: the clipping of torch, and parts that add up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mmexp.engine import StageJob, TrainerConfig, fit
from mmexp.engine.gradients import clip
from mmexp.engine.module import TrainingModule

Make = Callable[..., StageJob]
OPEN = {"encoder": "full", "connector": "full", "llm": "frozen"}


def two_parts() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {"one": nn.Linear(5, 7), "two": nn.Linear(7, 3), "idle": nn.Linear(2, 2)}
    parts["two"](parts["one"](torch.randn(4, 5))).square().sum().backward()
    return parts


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e9])
def test_clipping_is_that_of_torch_bit_for_bit(max_norm: float | None) -> None:
    mine, theirs = two_parts(), two_parts()
    all_mine = [p for part in mine.values() for p in part.parameters()]
    all_theirs = [p for part in theirs.values() for p in part.parameters()]
    norms = clip(all_mine, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(all_theirs, math.inf if max_norm is None else max_norm)
    assert norms.total == float(expected)
    for one, other in zip(all_mine, all_theirs, strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or other.grad is None or torch.equal(one.grad, other.grad)


def test_parts_have_the_norms_from_before_clipping() -> None:
    parts = two_parts()
    before = {
        name: math.hypot(*(p.grad.norm() for p in parts[name].parameters() if p.grad is not None))
        for name in ("one", "two")
    }
    norms = clip([p for part in parts.values() for p in part.parameters()], 0.01)
    assert norms.of_parts(parts) == pytest.approx(before)
    assert norms.total == pytest.approx(math.hypot(*before.values()))


def test_a_tensor_of_two_parts_counts_once() -> None:
    parts = two_parts()
    norms = clip(list(parts["one"].parameters()), None)
    found = norms.of_parts({"first": parts["one"], "second": parts["one"]})
    assert found == {"first": pytest.approx(norms.total)}


def test_without_any_gradient_the_norm_is_zero() -> None:
    norms = clip(list(nn.Linear(2, 2).parameters()), 1.0)
    assert (norms.total, norms.of_parts({"one": nn.Linear(2, 2)})) == (0.0, {})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps in which norms of parts were computed."""
    from mmexp.engine.gradients import GradNorms

    calls: list[int] = []
    plain = GradNorms.of_parts

    def counted(self: Any, parts: Any) -> Any:
        calls.append(1)
        return plain(self, parts)

    monkeypatch.setattr(GradNorms, "of_parts", counted)
    return calls


def records(job: StageJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.run.path / "metrics.jsonl").read_text().splitlines()]


def test_logged_steps_have_the_norm_of_every_part_that_trains(make_job: Make, asked: list[int]) -> None:
    every_third = TrainerConfig(accelerator="cpu", log_every_n_steps=3)
    job = make_job(policy=OPEN, trainer=every_third, grad_clip=1e-3)
    fit(job, lambda table: None)
    rows = records(job)
    assert [row["step"] for row in rows] == [1, 3, 6]
    assert len(asked) == 3, "between two records nothing is computed"
    for row in rows:
        assert {key for key in row if key.startswith("grad_norm/")} == {"grad_norm/encoder", "grad_norm/connector"}
        together = math.hypot(row["grad_norm/encoder"], row["grad_norm/connector"])
        assert together == pytest.approx(row["train/grad_norm"], rel=1e-4)
        assert together > 1e-3, "before clipping"


def test_norms_are_of_the_mean_over_the_whole_step(make_job: Make) -> None:
    whole, parts = make_job("whole", micro_batch_size=4), make_job("parts", micro_batch_size=1)
    for job in (whole, parts):
        fit(job, lambda table: None)
    first, other = records(whole)[0], records(parts)[0]
    for part in ("connector", "llm"):
        assert first[f"grad_norm/{part}"] == pytest.approx(other[f"grad_norm/{part}"], rel=1e-3)


def test_the_part_with_a_broken_gradient_shows(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TrainingModule, optimizer: Any) -> None:
        gradient = next(self.parts()["connector"].parameters()).grad
        assert gradient is not None
        gradient.fill_(float("nan"))

    monkeypatch.setattr(TrainingModule, "on_before_optimizer_step", broken)
    job = make_job(max_steps=1)
    fit(replace(job), lambda table: None)
    (row,) = records(job)
    assert math.isnan(row["grad_norm/connector"])
    assert math.isfinite(row["grad_norm/llm"])
