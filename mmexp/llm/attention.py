"""Attention inside segments, registered once with transformers, so that any decoder-only model takes it unpatched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "mmexp_segments"

SegmentLengths = Sequence[Sequence[int]]


def register() -> str:
    """Makes `NAME` known to transformers and returns it; calling it again does no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, segment_attention)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segment_lengths: SegmentLengths | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention that cannot cross a segment: one fused call per segment, nothing spent on padding.

    Args:
        module: The attention layer that calls.
        query: float[B, heads, T, head width]; `key` and `value` alike, with their own number of heads.
        attention_mask: None in training; while generating, the mask that transformers made.
        segment_lengths: Per row the lengths of its segments. None means an ordinary call (generation with a cache).

    Returns:
        float[B, T, heads, head width] and no attention weights. Padding behind the last segment gives zeros.
    """
    if segment_lengths is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    window = kwargs.get("sliding_window")
    rows = []
    for row, lengths in enumerate(segment_lengths):
        pieces = [
            _one_segment(q, k, v, scaling, dropout, window)
            for q, k, v in zip(
                *(part[row : row + 1, :, : sum(lengths)].split(list(lengths), dim=2) for part in (query, key, value)),
                strict=True,
            )
        ]
        padding = query.shape[2] - sum(lengths)
        if padding:
            pieces.append(query.new_zeros(1, query.shape[1], padding, value.shape[3]))
        rows.append(torch.cat(pieces, dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def _one_segment(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        index = torch.arange(length, device=query.device)
        distance = index[:, None] - index[None, :]
        mask = (distance >= 0) & (distance < window)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
        is_causal=mask is None,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask for an ordinary call. Without a padding mask, segments (or plain causality) decide, not a mask."""
    if attention_mask is None:
        return None
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)
