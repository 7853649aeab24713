"""Attention inside segments, registered once with transformers, so that any decoder-only model takes it unpatched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from inspect import signature
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn import functional

from mmexp.kernels import for_any_shape

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmexp.llm.spans import Spans

NAME = "mmexp_segments"
_F = TypeVar("_F", bound=Callable[..., Any])


def _never_compiled(function: _F) -> _F:
    """Called by a compiled block as it is: compiled too, it would be compiled again for every batch's lengths."""
    return torch.compiler.disable(function)  # type: ignore[return-value]  # typed for use without arguments too


@dataclass(frozen=True, eq=False)
class UsedRows:
    """The positions of a batch whose hidden states are used behind the last layer."""

    rows: Tensor
    """int64[K], ascending places in the flattened batch; one that several tokens go on from is there several times"""
    places: Sequence[Tensor]
    """Per span, in their order, which of its own positions: int64[k], ascending and possibly empty"""


def register() -> str:
    """Makes `NAME` known to transformers and returns it; calling it again does no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, segment_attention)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME


@_never_compiled
def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    spans: Spans | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention that cannot cross a segment: one fused call per span, nothing spent on padding.

    Args:
        module: The attention layer that calls.
        query: float[B, heads, T, head width]; `key` and `value` alike, with their own number of heads.
        attention_mask: None in training; while generating, the mask that transformers made.
        spans: Which positions see which. None means an ordinary call (generation with a cache).

    Returns:
        float[B, T, heads, head width] and no attention weights. What stands at padding has no meaning.
    """
    if spans is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if attention_mask is None:  # generation leaves it out where nothing is padded
            attention_mask = _window_mask(query, key, kwargs.get("sliding_window"))
        with for_any_shape(query):
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
    window = kwargs.get("sliding_window")
    if _suits_varlen(query, dropout) and not spans.have_branches:
        return _varlen(query, key, value, spans, scaling, window), None
    width, mixed = value.shape[3], []
    pieces = zip(spans.split(query), spans.split_seen(key), spans.split_seen(value), strict=True)
    for row in spans.rows:
        for span in row:
            q, k, v = next(pieces)
            if span.branches:
                out = _attend(q, k, v, scaling, dropout, spans.mask(span, q.device))
            else:
                out = _one_segment(q, k, v, scaling, dropout, window)
            mixed.append(out.squeeze(0).transpose(0, 1))  # out[0] would be filled with zeros in backward
        padding = next(pieces)[0]
        mixed.append(padding.new_zeros(padding.shape[2], query.shape[1], width))
    return torch.cat(mixed).unflatten(0, (query.shape[0], query.shape[2])), None


def used_rows(rows: Tensor, spans: Spans) -> UsedRows:
    """Which positions of which spans are used.

    Args:
        rows: int64[K], ascending places in the flattened batch, none of them padding.
        spans: All positions.
    """
    lengths = [span.length for row in spans.rows for span in row]
    ends = torch.tensor(
        [
            number * spans.num_columns + end
            for number, row in enumerate(spans.rows)
            for end in accumulate(span.length for span in row)
        ]
    )
    starts = ends - torch.tensor(lengths)
    counts = torch.searchsorted(rows.cpu(), ends).diff(prepend=ends.new_zeros(1))
    return UsedRows(rows, (rows - starts.repeat_interleave(counts).to(rows.device)).split(counts.tolist()))


@_never_compiled
def used_rows_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    used: UsedRows,
    spans: Spans,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """What `segment_attention` gives at used positions.

    Args:
        query: float[1, heads, K, head width], of the used positions.
        key: float[B, heads, T, head width], of all; `value` alike.

    Returns:
        float[1, heads, K, head width]
    """
    keys, values = spans.split_seen(key), spans.split_seen(value)
    places, queries = iter(used.places), iter(query.split([len(each) for each in used.places], dim=2))
    mixed = []
    for row in spans.rows:
        for span in row:
            own, asked, k, v = next(places), next(queries), next(keys), next(values)
            if len(own) and span.branches:
                mixed.append(_attend(asked, k, v, scaling, dropout, spans.mask(span, own.device)[own]))
            elif len(own):
                distance = own[:, None] - torch.arange(k.shape[2], device=own.device)
                mixed.append(_attend(asked, k, v, scaling, dropout, _within(distance, window)))
        next(keys)  # padding
        next(values)
    return torch.cat(mixed, dim=2)


def window_of(attention: Any) -> int | None:
    """How many keys a layer of transformers sees, its own place included; None for all."""
    return getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))


def compute_dtype(values: Tensor) -> torch.dtype:
    """What matrix products of `values` are made in: the dtype of autocast where it is on."""
    kind = values.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype


def _suits_varlen(query: Tensor, dropout: float) -> bool:
    """Whether all segments can be one call of the GPU kernel for sequences of different lengths."""
    return query.is_cuda and compute_dtype(query) in (torch.bfloat16, torch.float16) and not dropout and _has_varlen()


@lru_cache
def _varlen_arguments() -> frozenset[str]:
    """What torch's kernel for sequences of different lengths takes; empty without one."""
    if find_spec("torch.nn.attention.varlen") is None:
        return frozenset()
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(signature(varlen_attn).parameters)


def _has_varlen() -> bool:
    """Whether torch has the kernel with the arguments that are needed (2.10 has it without them)."""
    return {"scale", "window_size"} <= _varlen_arguments()


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """As `segment_attention`, in one call; padding is a segment like others, whose output nobody uses."""
    from torch.nn.attention.varlen import varlen_attn

    sizes = [size for size in spans.sizes if size]
    ends = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32).to(query.device, non_blocking=True)
    settings: dict[str, Any] = {"scale": scaling, "window_size": (-1 if window is None else window - 1, 0)}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in _varlen_arguments():
            settings["enable_gqa"] = True
        else:  # before torch 2.12
            key, value = _for_each_head(query, key), _for_each_head(query, value)
    dtype = compute_dtype(query)  # autocast does not know the kernel
    q, k, v = (part.transpose(1, 2).flatten(0, 1).to(dtype) for part in (query, key, value))
    mixed: Any = varlen_attn(q, k, v, ends, ends, max(sizes), max(sizes), **settings)
    return mixed.unflatten(0, (query.shape[0], query.shape[2]))


def _one_segment(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    length, mask = query.shape[2], None
    if window is not None and length > window:
        index = torch.arange(length, device=query.device)
        mask = _within(index[:, None] - index, window)
    return _attend(query, key, value, scaling, dropout, mask)


def _window_mask(query: Tensor, key: Tensor, window: int | None) -> Tensor | None:
    """bool[1, 1, Tq, Tk] of queries that are the last of the keys; None where the window hides nothing."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if window is None or num_keys <= window:
        return None
    places = torch.arange(num_keys, device=query.device)
    return _within(places[num_keys - num_queries :, None] - places, window)[None, None]


def _within(distance: Tensor, window: int | None) -> Tensor:
    """Which keys are seen that lie so far in front of the query."""
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, mask: Tensor | None
) -> Tensor:
    if query.is_cuda and mask is not None:  # the GPU's kernel for masks knows no groups of heads
        key, value = _for_each_head(query, key), _for_each_head(query, value)
    with for_any_shape(query):
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


def _for_each_head(query: Tensor, part: Tensor) -> Tensor:
    """Keys or values with as many heads as the query has."""
    return part if part.shape[1] == query.shape[1] else part.repeat_interleave(query.shape[1] // part.shape[1], dim=1)


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask for an ordinary call. Without a padding mask, segments (or plain causality) decide, not a mask."""
    if attention_mask is None:
        return None
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)
