"""Attention of lengths that change must not be planned anew for each of them. GPUs are pretended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from mmexp.connector.qformer_layers import Attend
from mmexp.kernels import for_any_shape
from mmexp.llm import attention
from mmexp.llm.spans import Spans


def is_on() -> bool:
    return torch.backends.cuda.cudnn_sdp_enabled()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bool, dict[str, Any]]]]:
    """Whether cuDNN was on in each call of torch's attention on a pretended GPU, and the call's settings."""
    found: list[tuple[bool, dict[str, Any]]] = []
    real: Callable[..., Any] = functional.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> Any:
        found.append((is_on(), {"shapes": [tuple(each.shape) for each in args], **kwargs}))
        return real(*args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    with FakeTensorMode():
        yield found


@pytest.mark.parametrize("was_on", [True, False])
def test_cudnn_is_left_out_and_comes_back_as_it_was(was_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = is_on()
    torch.backends.cuda.enable_cudnn_sdp(was_on)
    try:
        with FakeTensorMode(), pytest.raises(KeyError), for_any_shape(torch.empty(1, device="cuda")):
            assert not is_on()
            raise KeyError
        assert is_on() == was_on
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_nothing_changes_on_a_cpu() -> None:
    before = is_on()
    with for_any_shape(torch.empty(1)):
        assert is_on() == before


@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_last_layer_asks_for_a_kernel_that_takes_any_length(asked: Any, key_heads: int) -> None:
    spans = Spans(((5, 3),), 8)
    rows, first, second = (torch.zeros(n, dtype=torch.int64, device="cuda") for n in (3, 2, 1))
    used = attention.UsedRows(rows, (first, second))
    query, key = (torch.empty(1, heads, n, 8, device="cuda") for heads, n in ((4, 3), (key_heads, 8)))
    out = attention.used_rows_attention(query, key, key, used, spans)
    assert out.shape == query.shape
    assert [on for on, _ in asked] == [False, False]
    for _, call in asked:  # masks and groups of heads are not in one kernel
        assert {shape[1] for shape in call["shapes"]} == {4}
        assert call["attn_mask"] is not None
        assert not call["enable_gqa"]


def test_segments_and_answers_do_too(asked: Any) -> None:
    query, key = torch.empty(1, 4, 8, 8, device="cuda"), torch.empty(1, 2, 8, 8, device="cuda")
    attention.segment_attention(nn.Identity(), query, key, key, None, spans=Spans(((5, 3),), 8))
    layer: Any = nn.Identity()
    layer.num_key_value_groups, layer.is_causal = 2, True
    attention.segment_attention(layer, query[:, :, -1:], key, key, None)
    assert [on for on, _ in asked] == [False] * 3


def test_the_texts_of_a_qformer_do_too(asked: Any) -> None:
    with torch.device("cuda"):
        attend = Attend(16, 16, 2, 0.0)
    attend(torch.empty(2, 5, 16, device="cuda"), torch.empty(2, 7, 16, device="cuda"), None)
    assert [on for on, _ in asked] == [False]
