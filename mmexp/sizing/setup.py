"""What decides the size of a stage besides model and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sharding = Literal["none", "replicas", "optimizer", "everything"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Batch, precision, strategy and devices."""

    batch_size: int
    micro_batch_size: int
    precision: str = "32-true"
    """Lightning's name of it."""
    strategy: str = "auto"
    """Lightning's name of it."""
    num_devices: int = 1
    quantize: str = "none"
    """How the linear layers of the LLM are stored: none, int8 or nf4."""
    row: str = "flat"
    recompute: tuple[str, ...] = ()
    """Parts with gradient checkpointing."""
    is_by_length: bool = False
    """Whether micro-batches hold samples of like length."""
    is_on_gpu: bool = True
    """Whether GPUs run it."""

    @property
    def accumulate(self) -> int:
        """Micro-batches of an optimizer step on one device."""
        return max(1, self.batch_size // (self.micro_batch_size * self.num_devices))

    @property
    def sharding(self) -> Sharding:
        """What the devices share out among them."""
        if self.num_devices == 1:
            return "none"
        if "fsdp" in self.strategy or "stage_3" in self.strategy:
            return "everything"
        return "optimizer" if "deepspeed" in self.strategy else "replicas"

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed runs it, which copies what trains into shares of its own."""
        return "deepspeed" in self.strategy and self.num_devices > 1

    @property
    def has_autocast(self) -> bool:
        """Whether weights stay as they are stored and products run in 16 bit."""
        return self.precision.endswith("-mixed")

    @property
    def fetches_in_half(self) -> bool:
        """Whether the matrices of a block are fetched in 16 bit when it is its turn, so that autocast copies none."""
        return self.has_autocast and self.sharding == "everything" and not self.is_deepspeed

    @property
    def is_half(self) -> bool:
        """Whether whole modules are in 16 bit."""
        return not self.precision.startswith("32") and not self.has_autocast
