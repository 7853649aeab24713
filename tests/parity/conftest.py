"""A table of the largest differences, printed at the end: `python -m pytest tests/parity`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

_ROWS: list[tuple[str, float, float, str]] = []


@pytest.fixture
def compare() -> Callable[..., None]:
    """Compares two tensors, fails above the tolerance, and remembers the difference for the table."""

    def check(what: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
        assert ours.shape == theirs.shape, what
        distance = float((ours.detach().float() - theirs.detach().float()).abs().max())
        _ROWS.append((what, distance, float(theirs.detach().float().abs().max()), f"{tolerance:g}"))
        assert distance <= tolerance, f"{what}: {distance:.3g}"

    return check


@pytest.fixture
def same_tokens() -> Callable[..., None]:
    """Compares two lists of token ids."""

    def check(what: str, ours: list[int], theirs: list[int]) -> None:
        different = sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
        _ROWS.append((what, float(different), float(len(theirs)), "tokens, 0"))
        assert ours == theirs, what

    return check


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _ROWS:
        return
    terminalreporter.section("largest differences from transformers, float32")
    width = max(len(row[0]) for row in _ROWS)
    for what, distance, largest, tolerance in _ROWS:
        terminalreporter.write_line(f"{what:<{width}}  {distance:9.2g} of {largest:9.3g}   tolerance {tolerance}")
