"""AdamW with linear warm-up and cosine decay: the optimizer of every recipe of this family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, kw_only=True)
class AdamWCosineConfig:
    """Source: LLaVA-1.5 `scripts/v1_5/*.sh`: betas 0.9/0.999, eps 1e-8, cosine to zero after a linear warm-up."""

    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end, as a share of the peak."""

    def build(self, groups: list[dict[str, Any]], num_steps: int, warmup_ratio: float) -> tuple[Optimizer, LambdaLR]:
        """The optimizer over `groups` (see `parameter_groups`) and its schedule over `num_steps` steps."""
        optimizer = AdamW(groups, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)
        warmup = math.ceil(num_steps * warmup_ratio)
        return optimizer, LambdaLR(optimizer, CosineWithWarmup(num_steps, warmup, self.min_lr_ratio))


@dataclass(frozen=True)
class CosineWithWarmup:
    """Factor of the peak learning rate at a step; as transformers' `get_cosine_schedule_with_warmup`."""

    num_steps: int
    num_warmup: int
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        if step < self.num_warmup:
            return step / max(1, self.num_warmup)
        progress = min(1.0, (step - self.num_warmup) / max(1, self.num_steps - self.num_warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
