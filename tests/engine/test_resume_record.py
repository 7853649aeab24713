"""What a checkpoint remembers of how it was made, and what happens when that is not how it is resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mmexp.engine import StageJob, TrainerConfig, fit
from mmexp.engine.checkpoint import newest
from mmexp.engine.module import TrainingModule
from mmexp.engine.record import differences, fingerprint
from mmexp.errors import CheckpointError
from mmexp.llm import TinyLlmConfig

Make = Callable[..., StageJob]
ALIGN = {"encoder": "frozen", "connector": "full", "llm": "frozen"}
FEW = TrainerConfig(accelerator="cpu", log_every_n_steps=1, checkpoint_every_n_steps=2)
STEPS = 6


def run(job: StageJob, stop: int | None = None) -> None:
    """Trains to the end, or dies in step `stop`: what was saved before is all there is."""
    step = TrainingModule.training_step

    def dies(self: Any, batch: Any, index: int) -> Any:
        if self.global_step == stop:
            raise KeyError("died")
        return step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", dies)
        if stop is None:
            fit(job, lambda table: None)
        else:
            with pytest.raises(KeyError, match="died"):
                fit(job, lambda table: None)


def ids(job: StageJob) -> list[str]:
    lines = (job.run.path / "data_order.jsonl").read_text().splitlines()
    return [name for line in lines for name in json.loads(line)["ids"]]


def test_another_precision_is_refused_by_name_or_accepted_and_noted(make_job: Make) -> None:
    job = make_job(trainer=FEW)
    run(job, stop=3)
    other = replace(job, trainer=replace(FEW, precision="bf16-mixed"))
    words = r"trainer\.precision is bf16-mixed, the checkpoint has 32-true(.*\n)*.*inexact_resume=true"
    with pytest.raises(CheckpointError, match=words):
        run(other)
    run(replace(other, inexact=True))
    assert job.run.manifest()["inexact"] == ["trainer.precision is bf16-mixed, the checkpoint has 32-true"]
    assert job.run.manifest()["step"] == STEPS


def test_other_micro_batches_go_on_behind_the_same_samples(make_job: Make) -> None:
    whole = make_job("whole", trainer=FEW, log_ids=True)
    run(whole)
    job = make_job(trainer=FEW, log_ids=True)
    run(job, stop=3)
    with pytest.raises(CheckpointError, match=r"stage\.micro_batch_size is 1, the checkpoint has 2"):
        run(replace(job, micro_batch_size=1))
    run(replace(job, micro_batch_size=1, inexact=True))
    assert job.run.manifest()["step"] == STEPS
    state = torch.load(newest(job.run.checkpoints), weights_only=True)
    assert state["MultimodalDataModule"]["position"] == 4 * STEPS
    assert ids(job)[-16:] == ids(whole)[-16:]
    losses = [json.loads(line)["train/loss"] for line in (job.run.path / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line)["train/loss"] for line in (whole.run.path / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("inexact", [False, True])
def test_another_base_is_never_accepted(make_job: Make, inexact: bool) -> None:
    job = make_job(trainer=FEW, policy=ALIGN)
    run(job, stop=3)
    plan = replace(job.plan, llm=TinyLlmConfig(seed=1))
    with pytest.raises(CheckpointError, match="weights that do not train have the fingerprint"):
        run(replace(job, plan=plan, inexact=inexact))


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(make_job: Make, caplog: Any) -> None:
    whole = make_job("whole", trainer=FEW)
    run(whole)
    job = make_job(trainer=FEW)
    run(job, stop=5)
    file = newest(job.run.checkpoints)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with caplog.at_level("WARNING", logger="mmexp"):
        run(job)
    assert "step_00000004.ckpt is damaged" in caplog.text
    assert job.run.manifest()["resumed_from"] == "step_00000002.ckpt"
    for part in ("connector", "llm"):
        name = f"{part}.safetensors"
        assert (job.run.weights / name).read_bytes() == (whole.run.weights / name).read_bytes()


def test_a_fingerprint_sees_one_bit_of_what_is_frozen_and_nothing_else() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(300, 300), nn.Linear(3, 3).to(torch.bfloat16))
    module.requires_grad_(False)
    before = fingerprint(module)
    module[1].bias.requires_grad_(True)
    assert fingerprint(module) != before
    module[1].bias.requires_grad_(False)
    assert fingerprint(module) == before
    module[0].weight[17, 23] += 1e-6
    assert fingerprint(module) != before


def test_what_only_one_record_knows_is_no_difference() -> None:
    assert differences({"a": 1, "b": 2}, {"b": 2, "c": 3}) == []
    assert differences({"a": 1}, {"a": 2}) == ["a is 2, the checkpoint has 1"]
