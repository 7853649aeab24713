"""The last layer of a decoder at used positions only: every key and value, but queries, MLP and norms for a few rows.

Nothing behind the last layer mixes positions, so what it gives elsewhere is work for nobody. A known layer gets a class
that adds one argument to its own; it keeps its weights, their names, hooks, and recomputation of activations.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.opt.modeling_opt import OPTDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from mmexp.llm.attention import UsedRows, used_rows_attention, window_of
from mmexp.llm.rotary import rotate
from mmexp.llm.spans import Spans


def prune_last_layer(decoder: Any) -> bool:
    """Lets the last layer of a transformers decoder take `used`, a `UsedRows`; False where its class is not known.

    With it the layer takes float[B, T, D] and gives float[1, K, D].
    """
    layers = getattr(decoder, "layers", None)
    kind = _KNOWN.get(type(layers[-1])) if isinstance(layers, nn.ModuleList) else None
    if kind is None or getattr(decoder, "layerdrop", 0.0):  # OPT's training may leave out the last layer
        return False
    assert isinstance(layers, nn.ModuleList)
    layers[-1].__class__ = kind
    return True


def _take(values: Tensor, used: UsedRows) -> Tensor:
    """float[B, T, ...] to float[1, K, ...]."""
    return values.flatten(0, 1).index_select(0, used.rows)[None]


def _attend(
    attention: Any,
    hidden: Tensor,
    used: UsedRows,
    spans: Spans,
    dropout: float,
    rotation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """float[B, T, D] to what goes into the output projection, float[1, K, heads * head width]."""
    query, key, value = (
        projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projected in (
            attention.q_proj(_take(hidden, used)), attention.k_proj(hidden), attention.v_proj(hidden)
        )
    )  # fmt: skip
    if rotation is not None:
        query = rotate(query, *(_take(part, used) for part in rotation))
        key = rotate(key, *rotation)
    mixed = used_rows_attention(
        query,
        key,
        value,
        used,
        spans,
        scaling=attention.scaling,
        dropout=dropout if attention.training else 0.0,
        window=window_of(attention),
    )
    return mixed.transpose(1, 2).flatten(2)


def _llama(
    layer: Any,
    hidden: Tensor,
    used: UsedRows,
    spans: Spans,
    position_embeddings: tuple[Tensor, Tensor],
    **kwargs: Any,
) -> Tensor:
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    mixed = _attend(attention, normed, used, spans, attention.attention_dropout, position_embeddings)
    rows = _take(hidden, used) + attention.o_proj(mixed)
    return rows + layer.mlp(layer.post_attention_layernorm(rows))


def _opt(layer: Any, hidden: Tensor, used: UsedRows, spans: Spans, **kwargs: Any) -> Tensor:
    def drop(values: Tensor) -> Tensor:
        return functional.dropout(values, p=layer.dropout, training=layer.training)

    first = layer.do_layer_norm_before
    normed = layer.self_attn_layer_norm(hidden) if first else hidden
    mixed = _attend(layer.self_attn, normed, used, spans, layer.self_attn.dropout)
    rows = _take(hidden, used) + drop(layer.self_attn.out_proj(mixed))
    if not first:
        rows = layer.self_attn_layer_norm(rows)
    inner = layer.final_layer_norm(rows) if first else rows
    rows = rows + drop(layer.fc2(layer.activation_fn(layer.fc1(inner))))
    return rows if first else layer.final_layer_norm(rows)


class _LastLlama(LlamaDecoderLayer):
    def forward(self, hidden_states: Tensor, *args: Any, used: UsedRows | None = None, **kwargs: Any) -> Tensor:
        if used is None:
            return super().forward(hidden_states, *args, **kwargs)
        return _llama(self, hidden_states, used, **kwargs)


class _LastQwen2(Qwen2DecoderLayer):
    def forward(self, hidden_states: Tensor, *args: Any, used: UsedRows | None = None, **kwargs: Any) -> Tensor:
        if used is None:
            return super().forward(hidden_states, *args, **kwargs)
        return _llama(self, hidden_states, used, **kwargs)


class _LastMistral(MistralDecoderLayer):
    def forward(self, hidden_states: Tensor, *args: Any, used: UsedRows | None = None, **kwargs: Any) -> Tensor:
        if used is None:
            return super().forward(hidden_states, *args, **kwargs)
        return _llama(self, hidden_states, used, **kwargs)


class _LastOpt(OPTDecoderLayer):
    def forward(self, hidden_states: Tensor, *args: Any, used: UsedRows | None = None, **kwargs: Any) -> Tensor:
        if used is None:
            return super().forward(hidden_states, *args, **kwargs)
        return _opt(self, hidden_states, used, **kwargs)


_KNOWN: dict[type, type] = {
    LlamaDecoderLayer: _LastLlama,
    Qwen2DecoderLayer: _LastQwen2,
    MistralDecoderLayer: _LastMistral,
    OPTDecoderLayer: _LastOpt,
}
