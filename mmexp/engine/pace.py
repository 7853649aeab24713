"""How fast a run is: what it computes of what the device could, what it waits for, what it holds."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mmexp.contracts import Batch


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What makes model FLOPs utilisation of a throughput.

    Source: Chowdhery et al. 2022, PaLM, appendix B: operations of forward and backward pass without recomputation, over
    what the devices reach at most.
    """

    flops_per_token: float
    """Of forward and backward pass, as the stage's mean sample has them."""
    peak_flops: float
    """Operations a second that one device reaches at most."""

    def mfu(self, tokens_per_s: float, num_devices: int) -> float:
        """The share, 0 to 1, of a throughput over all devices."""
        return self.flops_per_token * tokens_per_s / (self.peak_flops * num_devices)


def num_media(batch: Batch) -> int:
    """Pictures and other media of a batch."""
    return sum(map(len, batch.media_owners.values()))


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def peak_memory_gb() -> float:
    """Most that tensors took of this process's GPU so far, in 10^9 bytes; without one, as `peak_memory_mb`."""
    has_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.cuda.max_memory_allocated() / 1e9 if has_gpu else peak_memory_mb() * 2**20 / 1e9
