"""Seeds of a step, which follow from the run's seed and the position and from nothing else."""

from __future__ import annotations

import hashlib

import torch


def seed_step(seed: int, device: torch.device) -> None:
    """Seeds the generators that a step may draw from: the CPU's and its own device's.

    `torch.manual_seed` would also note the call for every kind of accelerator that is not in use, with a formatted
    stack each: about 1 ms a step under the Trainer, and a list that grows for ever.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def mix(seed: int, position: int, rank: int = 0) -> int:
    """A seed for one micro-batch that depends on nothing but the run's seed, the position and the process."""
    text = f"{seed}:{position}:{rank}" if rank else f"{seed}:{position}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")
