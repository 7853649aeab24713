"""An allocation that fails ends a run with what was in hand and what to change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from mmexp.contracts import Batch, Losses
from mmexp.engine import StageJob, fit
from mmexp.engine.memory import OutOfMemory, is_out_of_memory
from mmexp.objective import NextTokenConfig


@dataclass(frozen=True)
class GreedyConfig:
    """Asks for more memory than any machine has, from the third micro-batch on."""

    def build(self, plan: Any) -> Greedy:
        return Greedy(NextTokenConfig().build(plan))


class Greedy(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def requires(self, plan: Any) -> None:
        self.inner.requires(plan)

    def forward(self, model: Any, batch: Batch) -> Losses:
        self.seen += 1
        if self.seen == 3:
            torch.empty(2**55)
        return self.inner(model, batch)


def test_a_failed_allocation_names_the_batch_and_what_takes_less(make_job: Callable[..., StageJob]) -> None:
    job = make_job(objective=GreedyConfig())
    with pytest.raises(OutOfMemory) as caught:
        fit(job, lambda table: None)
    text = str(caught.value)
    assert text.startswith("step 2: out of memory with a micro-batch of 2 samples, ")
    assert " media. " in text
    assert "tried to allocate" in text
    for way in ("trainer.gradient_checkpointing=[llm]", "stage.micro_batch_size=1", "trainer.precision=bf16-mixed"):
        assert way in text
    assert job.run.manifest()["status"] == "failed"


def test_other_errors_are_not_taken_for_it() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
