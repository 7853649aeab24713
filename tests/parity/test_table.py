"""The table keeps the worst of each kind, and a comparison that is too far apart fails."""

from __future__ import annotations

import pytest
import torch

from tests.differences import Differences


def test_the_worst_is_kept_and_too_far_fails() -> None:
    kept = Differences()
    for distance in (1e-5, 3e-5, 2e-5):
        kept("Model", "logits", torch.tensor([1.0, 2.0 + distance]), torch.tensor([1.0, 2.0]), 1e-4)
    kept.tokens("Model", "greedy", [1, 2], [1, 2])
    head, logits, greedy = (line.split() for line in kept.table())
    assert head[:2] == ["class", "quantity"]
    assert logits == ["Model", "logits", "3e-05", "2", "0.0001"]
    assert greedy == ["Model", "greedy", "0", "equal"]
    with pytest.raises(AssertionError, match="Model, logits"):
        kept("Model", "logits", torch.tensor([1.0]), torch.tensor([1.001]), 1e-4)
    with pytest.raises(AssertionError, match="Model, greedy"):
        kept.tokens("Model", "greedy", [1, 2], [1, 3])
    assert len(kept.rows) == 2
