"""An objective and a dataset that go wrong on purpose, as a user's own classes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import get_worker_info

from mmexp.contracts import Batch, Losses
from mmexp.data import LlavaJsonConfig
from mmexp.objective import NextTokenConfig


@dataclass(frozen=True, kw_only=True)
class PoisonConfig:
    """The loss of the next token, times `factor` in micro-batches that hold one of `samples`."""

    samples: Sequence[str]
    factor: float

    def build(self, plan: Any) -> Poison:
        return Poison(NextTokenConfig().build(plan), self)


class Poison(nn.Module):
    def __init__(self, inner: Any, config: PoisonConfig) -> None:
        super().__init__()
        self.inner, self.config = inner, config

    def requires(self, plan: Any) -> None:
        self.inner.requires(plan)

    def forward(self, model: Any, batch: Batch) -> Losses:
        losses = self.inner(model, batch)
        if not set(batch.ids) & set(self.config.samples):
            return losses
        return Losses(sums={"lm": losses.sums["lm"] * self.config.factor}, counts=losses.counts)


@dataclass(frozen=True, kw_only=True)
class StuckConfig:
    """Rows of which one is never ready, in a worker process."""

    path: str
    row: int

    def build(self) -> Stuck:
        return Stuck(LlavaJsonConfig(path=self.path).build(), self.row)


class Stuck:
    def __init__(self, inner: Any, row: int) -> None:
        self.inner, self.row = inner, row

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        while index == self.row and get_worker_info() is not None:
            time.sleep(1)
        return self.inner[index]
