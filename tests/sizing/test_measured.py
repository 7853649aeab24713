"""Estimates against what the process really takes; `python -m pytest tests/sizing -m measure -s` prints the figures."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    file = Path(__file__).parents[2] / "experiments" / "doctor_check.py"
    spec = importlib.util.spec_from_file_location("doctor_check", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["doctor_check"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK = _load()


@pytest.mark.measure
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no VmHWM to reset")
@pytest.mark.parametrize("name", list(CHECK.CASES))
def test_memory_within_15_percent_and_flops_within_2(name: str) -> None:
    found = CHECK.run_case(name)
    print(f"\n{name}: {found['estimate'] / 1e6:,.0f} MB estimated, {found['measured'] / 1e6:,.0f} measured")
    assert found["estimate"] == pytest.approx(found["measured"], rel=0.15)
    assert found["flops"] == pytest.approx(found["counted"], rel=0.02)
