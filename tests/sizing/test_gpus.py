"""The card that is here, by the name that CUDA has for it."""

from __future__ import annotations

import pytest

from mmexp.sizing import GPUS
from mmexp.sizing.gpus import gpu_like


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100_80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100_40gb"),
        ("NVIDIA H100 80GB HBM3", "h100_80gb"),
        ("NVIDIA H200", "h200_141gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100", None),
        ("Tesla T4", None),
    ],
)
def test_names_of_cards(name: str, key: str | None) -> None:
    assert gpu_like(name) == (GPUS[key] if key else None)
