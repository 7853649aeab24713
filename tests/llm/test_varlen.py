"""The GPU kernel for segments of different lengths against the loop of the CPU."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch

from mmexp.llm import attention
from mmexp.llm.spans import Spans


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("lengths", [((9, 33, 1),), ((20,), (7, 5))])
def test_one_call_equals_a_loop_over_segments(
    lengths: Any, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    columns = max(map(sum, lengths))
    sizes = ((8, 64), (2, 64), (2, 64))
    inside = torch.zeros(len(lengths), columns, dtype=torch.bool, device="cuda")
    for row, own in enumerate(lengths):
        inside[row, : sum(own)] = True
    results = []
    for uses_kernel in (True, False):
        torch.manual_seed(0)
        parts = [
            torch.randn(len(lengths), heads, columns, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for heads, width in sizes
        ]
        monkeypatch.setattr(attention, "_has_varlen", lambda uses=uses_kernel: uses)
        assert attention._suits_varlen(parts[0], 0.0) == uses_kernel
        mixed, _ = attention.segment_attention(
            torch.nn.Identity(), *parts, None, spans=Spans(lengths, columns), sliding_window=window
        )
        mixed[inside].float().pow(2).sum().backward()
        results.append([mixed[inside].detach(), *(part.grad for part in parts)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


def test_the_kernel_is_left_to_gpus_in_low_precision() -> None:
    query = torch.zeros(1, 2, 3, 8)
    assert not attention._suits_varlen(query, 0.0)
    assert not attention._suits_varlen(query.bfloat16(), 0.0)


def test_the_kernel_of_this_torch_takes_what_it_is_given() -> None:
    if not attention._has_varlen():
        pytest.skip("this torch has no kernel for segments, or one without scale, window and groups")
    from torch.nn.attention.varlen import varlen_attn

    assert list(signature(varlen_attn).parameters)[:7] == [
        "query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k",
    ]  # fmt: skip
