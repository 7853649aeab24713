"""Cards by name: how much they hold, and how fast they multiply."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mmexp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One card, as its data sheet has it."""

    memory_gb: int
    """In 10^9 bytes. Cards hold up to 7 % more than the number on the box, which is left to CUDA and fragments."""
    bf16_tflops: float
    """Peak of dense bf16 matrix products with float32 sums, in 10^12 operations a second."""
    fp32_tflops: float
    """Peak of float32 products, which torch takes unless it is told to round them (TF32)."""

    @property
    def memory_bytes(self) -> int:
        """What a job may use."""
        return self.memory_gb * 10**9

    def peak_flops(self, precision: str) -> float:
        """Operations a second under one of Lightning's precisions."""
        return 1e12 * (self.fp32_tflops if precision.startswith("32") else self.bf16_tflops)


GPUS: Mapping[str, Gpu] = {
    "rtx3090": Gpu(memory_gb=24, bf16_tflops=71, fp32_tflops=35.6),
    "rtx4090": Gpu(memory_gb=24, bf16_tflops=165.2, fp32_tflops=82.6),
    "a100_40gb": Gpu(memory_gb=40, bf16_tflops=312, fp32_tflops=19.5),
    "a100_80gb": Gpu(memory_gb=80, bf16_tflops=312, fp32_tflops=19.5),
    "h100_80gb": Gpu(memory_gb=80, bf16_tflops=989, fp32_tflops=67),
    "h200_141gb": Gpu(memory_gb=141, bf16_tflops=989, fp32_tflops=67),
}
"""Source: NVIDIA's Ampere GA102 and Ada architecture papers (tables of the two RTX cards), and the data sheets of A100,
H100 SXM and H200 SXM (their bf16 figures with sparsity halved)."""


def gpu_named(name: str) -> Gpu:
    """The card of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in GPUS:
        close = difflib.get_close_matches(name, GPUS, n=1, cutoff=0.3)
        raise ConfigError(f"{name!r}", expected=", ".join(GPUS), where="gpu", fix=f"gpu={close[0]}" if close else None)
    return GPUS[name]


def gpu_like(device_name: str) -> Gpu | None:
    """The card that CUDA calls so, such as `NVIDIA A100-SXM4-80GB`; None where its figures are not known."""
    found = re.sub("[^a-z0-9]", "", device_name.lower())
    if "pcie" in found and "h100" in found:  # slower than the one in the table
        return None
    of_its_kind = [name for name in GPUS if name.split("_")[0] in found]
    sized = [name for name in of_its_kind if name.split("_")[-1].removesuffix("gb") + "gb" in found]
    names = sized or of_its_kind
    return GPUS[names[0]] if len(names) == 1 else None
