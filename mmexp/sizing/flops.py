"""Arithmetic of a stage, and how long cards take for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmexp.sizing.batch import synthetic_batch
from mmexp.sizing.trace import trace_step

if TYPE_CHECKING:
    from torch import nn

    from mmexp.model import MultimodalModel, Plan
    from mmexp.sizing.gpus import Gpu
    from mmexp.sizing.setup import Setup
    from mmexp.sizing.workload import Workload

_SAMPLES = 4
"""Samples that are traced together: enough for objectives that compare samples."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Operations of a stage; a multiplication and an addition count two."""

    per_sample: float
    """Of forward and backward pass."""
    forward: float
    """Of a sample's forward pass alone."""
    num_samples: int | None
    """Samples of the whole stage; None when nobody knows how many rows there are."""

    @property
    def total(self) -> float | None:
        """Of the whole stage."""
        return None if self.num_samples is None else self.per_sample * self.num_samples

    def hours(self, gpu: Gpu, num_devices: int, precision: str, utilisation: float) -> float | None:
        """How long cards of one kind take when they reach that share (0 to 1) of their peak."""
        if self.total is None:
            return None
        return self.total / (gpu.peak_flops(precision) * utilisation * num_devices) / 3600


def arithmetic_of(
    plan: Plan,
    model: MultimodalModel,
    objective: nn.Module,
    setup: Setup,
    workload: Workload,
    num_samples: int | None,
) -> Arithmetic:
    """The operations of the mean sample. Arguments as of `size_stage`; a frozen part that no gradient passes through
    has no backward pass, one that it passes through has half of one."""
    count = min(_SAMPLES, setup.micro_batch_size)
    batch = synthetic_batch(plan, count, workload.tokens, workload.supervised, workload.media, setup.row)
    trace = trace_step(model, objective, batch)
    return Arithmetic(per_sample=trace.flops / count, forward=trace.forward_flops / count, num_samples=num_samples)
