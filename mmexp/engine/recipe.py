"""The numbers of one stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmexp.tuning import LoraSettings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of one stage that the module needs."""

    policy: Mapping[str, Any]
    """Part -> frozen, lora, full or a mapping of its children."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    live_dropout: Sequence[str] = ()
    """Frozen parts whose dropout stays active."""
    new_tokens: str = "full"
    """Whether rows of new tokens train in a frozen LLM: full or frozen."""
    allow_random_frozen: bool = False
    """Whether a frozen part may have weights that nothing has loaded."""
    lr: float
    """Peak learning rate."""
    lr_by_part: Mapping[str, float] = field(default_factory=dict)
    layer_decay: Mapping[str, float] = field(default_factory=dict)
    """Per part the factor of the learning rate from a block to the one before it."""
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    """Share of the steps with rising learning rate."""
    grad_clip: float | None = None
    """Largest total gradient norm; null clips nothing."""
    num_steps: int
    """Optimizer steps of the whole run."""
    accumulate: int = 1
    """Micro-batches in one optimizer step on each rank."""
    cast_frozen: bool = True
    """Whether frozen matrices are stored in the dtype of autocast."""
    seed: int = 0
    gradient_checkpointing: Sequence[str] = ()
    """Parts whose blocks are computed again in backward, for memory."""
    compiled: Sequence[str] = ()
    """Parts whose blocks `torch.compile` compiles."""
