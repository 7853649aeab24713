"""The benchmark of a step: it compares before it times, and refuses what is not exact."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`step_time` with a model of a minute's thousandth."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    pair = importlib.import_module("step_pair")
    monkeypatch.setitem(
        pair.SHAPES, "small", pair.Shape(vision_layers=2, vision_width=64, layers=2, width=64, vocabulary=50)
    )
    module = importlib.import_module("step_time")
    monkeypatch.setattr(module, "BATCH", {1: 2, 2: 2})
    return module


@pytest.mark.parametrize("case", ["small_s1_fp32", "small_s2_bf16", "small_five_s2_fp32"])
def test_every_variant_is_compared_and_timed(bench: ModuleType, case: str, tmp_path: Path) -> None:
    names = [bench.THEIRS, *bench.ABLATIONS]
    found = bench.timed(case, 2, names)
    assert set(found["seconds"]) == set(names)
    assert all(len(values) == 2 and min(values) > 0 for values in found["seconds"].values())
    page = importlib.import_module("step_page")
    figures: dict[str, Any] = {
        case: found,
        "memory": {case: {bench.THEIRS: 10.0, bench.OURS: 4.0, "before": 2.0}},
        "head": {"full": 24.0, bench.OURS: 2.0},
        "growth": {"tokens": {"1": [1.0], "2": [2.0], "4": [4.0], "8": [8.0]}},
    }
    page.write_page(figures, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| 0.40 | 2 MB | 0.25 |" in text
    assert "1/12.0" in text
    assert "8.00; 1.00" in text
    assert all(name in text for name in bench.ABLATIONS)


def test_what_is_not_exact_is_not_timed(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    make = bench.make_loss

    def wrong(name: str, *arguments: Any) -> Any:
        loss = make(name, *arguments)
        return loss if name == bench.THEIRS else lambda: loss() * 1.00001

    monkeypatch.setattr(bench, "make_loss", wrong)
    with pytest.raises(SystemExit, match="not exact"):
        bench.timed("small_s1_fp32", 1, [bench.THEIRS, bench.OURS])


def test_memory_of_the_second_step_is_read(bench: ModuleType) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no VmHWM here")
    peak, before = (bench.measure(kind, bench.OURS, "small", "2", "False") for kind in ("peak", "before"))
    assert peak > before > 100
    assert "step_time" in sys.modules
