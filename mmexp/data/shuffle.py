"""Random numbers that depend on words alone: not on a library's generator, whose stream may change between versions."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import ndarray


def seed_of(*words: Any) -> int:
    """A 62-bit number that depends on these words and nothing else."""
    text = ":".join(map(str, words)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 2


def permutation(count: int, *words: Any) -> ndarray:
    """int64[count], a permutation that depends on the words alone."""
    import numpy as np

    return np.argsort(noise(count, seed_of(*words)), kind="stable")


def noise(count: int, seed: int) -> ndarray:
    """uint64[count] of even noise. Source: SplitMix64 (Steele, Lea, Flood 2014), as a counter-based generator."""
    import numpy as np

    with np.errstate(over="ignore"):
        state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
