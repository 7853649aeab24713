"""Published training runs: the FLOPs that are known of them, and utilisations that can be true."""

from __future__ import annotations

import pytest

from mmexp.assemble import experiment
from mmexp.config import DoctorConfig, compose
from mmexp.present_size import Sizing
from mmexp.sizing import GPUS, Arithmetic

OWN = DoctorConfig(gpu=None, utilisation=0.3, tokens=None, rows=None)


def arithmetic(*overrides: str) -> Arithmetic:
    return Sizing(exp=experiment(compose("train", [*overrides, "scale=paper"])), own=OWN).arithmetic


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "devices", "hours", "flops"),
    [
        (["recipe=llava15", "stage=llava15/align"], 8, 3.5, 8.8e18),
        (["recipe=llava15", "stage=llava15/instruct"], 8, 10, 2.0e19),
        (["recipe=llava15_13b", "stage=llava15/align"], 8, 5.5, None),
        (["recipe=llava15_13b", "stage=llava15/instruct"], 8, 20, None),
        (["recipe=minigpt4", "stage=minigpt4/align"], 4, 10, None),
    ],
)
def test_published_runs(overrides: list[str], devices: int, hours: float, flops: float | None) -> None:
    """Source: haotian-liu/LLaVA README (8 A100), MiniGPT-4 section 3.1 (4 A100)."""
    found = arithmetic(*overrides)
    assert found.total is not None
    at_peak = found.hours(GPUS["a100_80gb"], devices, "bf16-mixed", 1.0)
    assert at_peak is not None
    print(f"\n{' '.join(overrides)}: {found.total:.3g} FLOPs, {at_peak / hours:.1%} of the peak")
    assert 0.15 <= at_peak / hours <= 0.45
    if flops is not None:
        assert found.total == pytest.approx(flops, rel=0.1)
