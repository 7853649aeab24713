"""The layers of the Q-Former: BERT's, with cross-attention to features and a second feed-forward path for queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from mmexp.connector.base import attention_weights
from mmexp.kernels import for_any_shape

if TYPE_CHECKING:
    from torch import Tensor

KeyValue = tuple["Tensor", "Tensor"]
"""Keys and values of one layer's self-attention, each float[B, heads, Q, W / heads]."""

EPS = 1e-12
"""Epsilon of every LayerNorm, as in BERT."""


class Attend(nn.Module):
    """Multi-head attention up to, not including, its output layer.

    Args:
        width: W, of the rows that ask.
        source_width: Width of the rows that are asked.
        num_heads: Heads; divides W.
        dropout: Of the attention weights, 0 to 1.
    """

    def __init__(self, width: int, source_width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = (num_heads, width // num_heads), dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)

    def forward(
        self, hidden: Tensor, source: Tensor, mask: Tensor | None, prefix: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """float[B, R, W] asks float[B, S, E]; `mask` is added to the scores and broadcasts to float[B, heads, R, S].

        Keys and values of `prefix` stand before those of `source`. The second result is what `source` gave.
        """
        query, key, value = self._split(self.query(hidden), self.key(source), self.value(source))
        own = (key, value)
        if prefix is not None:
            key, value = torch.cat([prefix[0], key], 2), torch.cat([prefix[1], value], 2)
        dropout = self.dropout if self.training else 0.0
        bias = None if mask is None else mask.to(query.dtype)
        with for_any_shape(query):  # texts beside the queries have their own lengths
            context = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return context.transpose(1, 2).flatten(2), own

    def weights(self, hidden: Tensor, source: Tensor) -> Tensor:
        """How much each row that asks takes from each that is asked, without a mask: float32[B, heads, R, S]."""
        return attention_weights(*self._split(self.query(hidden), self.key(source)))

    def _split(self, *rows: Tensor) -> list[Tensor]:
        """Each float[B, R, W] by heads: float[B, heads, R, W / heads]."""
        return [each.unflatten(-1, self.heads).transpose(1, 2) for each in rows]


class Residual(nn.Module):
    """Linear layer, dropout, residual and LayerNorm: how every block of BERT ends."""

    def __init__(self, width: int, out_width: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, out_width)
        self.LayerNorm = nn.LayerNorm(out_width, eps=EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, residual: Tensor) -> Tensor:
        """float[..., width] and float[..., out_width] to float[..., out_width]."""
        return self.LayerNorm(self.dropout(self.dense(values)) + residual)


class Attention(nn.Module):
    """Attention with its output layer; the children have BERT's names."""

    def __init__(self, width: int, source_width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.self = Attend(width, source_width, num_heads, dropout)
        self.output = Residual(width, width, dropout)

    def forward(
        self, hidden: Tensor, source: Tensor, mask: Tensor | None, prefix: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """As `Attend`, with the residual."""
        context, own = self.self(hidden, source, mask, prefix)
        return self.output(context, hidden), own


class Grow(nn.Module):
    """First half of a feed-forward block: linear layer and exact GELU."""

    def __init__(self, width: int, ffn_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, ffn_width)

    def forward(self, values: Tensor) -> Tensor:
        """float[..., W] to float[..., F]."""
        return functional.gelu(self.dense(values))


class QformerLayer(nn.Module):
    """Self-attention of queries and text together, cross-attention of queries only, a feed-forward block for each.

    Args:
        width: W.
        ffn_width: Inner width of the feed-forward blocks.
        num_heads: Heads of both attentions.
        dropout: Everywhere, 0 to 1.
        source_width: E, or None in a layer without cross-attention.
        has_text: Whether there is a feed-forward block for text.
    """

    def __init__(
        self, width: int, ffn_width: int, num_heads: int, dropout: float, source_width: int | None, has_text: bool
    ) -> None:
        super().__init__()
        self.attention = Attention(width, width, num_heads, dropout)
        if source_width is not None:
            self.crossattention = Attention(width, source_width, num_heads, dropout)
        self.intermediate_query = Grow(width, ffn_width)
        self.output_query = Residual(ffn_width, width, dropout)
        if has_text:
            self.intermediate = Grow(width, ffn_width)
            self.output = Residual(ffn_width, width, dropout)

    def forward(
        self,
        hidden: Tensor,
        num_queries: int,
        features: Tensor | None,
        mask: Tensor | None,
        prefix: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """float[B, num_queries + T, W] to the same, and the keys and values of its self-attention."""
        attended, own = self.attention(hidden, hidden, mask, prefix)
        queries, text = attended[:, :num_queries], attended[:, num_queries:]
        rows = []
        if num_queries:
            if hasattr(self, "crossattention"):
                queries, _ = self.crossattention(queries, features, None)
            rows.append(self.output_query(self.intermediate_query(queries), queries))
        if text.shape[1]:
            rows.append(self.output(self.intermediate(text), text))
        return torch.cat(rows, 1) if len(rows) > 1 else rows[0], own


class Embeddings(nn.Module):
    """Words and their positions (from 0) behind the queries, under one LayerNorm. There are no token types."""

    def __init__(self, width: int, vocab_size: int, num_positions: int, dropout: float, has_text: bool) -> None:
        super().__init__()
        if has_text:
            self.word_embeddings = nn.Embedding(vocab_size, width, padding_idx=0)
            self.position_embeddings = nn.Embedding(num_positions, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor | None, input_ids: Tensor | None) -> Tensor:
        """float[B, Q, W] and int64[B, T] to float[B, Q + T, W]."""
        rows = [] if queries is None else [queries]
        if input_ids is not None:
            positions = self.position_embeddings.weight[: input_ids.shape[1]]
            rows.append(self.word_embeddings(input_ids) + positions)
        return self.dropout(self.LayerNorm(torch.cat(rows, 1)))


class Encoder(nn.Module):
    """All layers; holds them under BERT's name."""

    def __init__(self, layers: list[QformerLayer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)

    def forward(
        self,
        hidden: Tensor,
        num_queries: int,
        features: Tensor | None,
        mask: Tensor | None,
        prefix: list[KeyValue] | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """As one layer, with one entry for each of them in `prefix` and in the second result."""
        memory: list[KeyValue] = []
        for index, layer in enumerate(self.layer):
            hidden, own = layer(hidden, num_queries, features, mask, prefix[index] if prefix else None)
            memory.append(own)
        return hidden, memory


class Bert(nn.Module):
    """Embeddings and layers under BERT's names."""

    def __init__(self, embeddings: Embeddings, encoder: Encoder) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = encoder


class Head(nn.Module):
    """BERT's head for masked words. Its output matrix is the word embedding, which is handed in at every call."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.predictions = nn.Module()
        self.predictions.transform = nn.Module()
        self.predictions.transform.dense = nn.Linear(width, width)
        self.predictions.transform.LayerNorm = nn.LayerNorm(width, eps=EPS)
        self.predictions.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """float[..., W] and the word embeddings float[V, W] to logits float[..., V]."""
        predictions: Any = self.predictions
        grown = functional.gelu(predictions.transform.dense(hidden))
        return functional.linear(predictions.transform.LayerNorm(grown), words, predictions.bias)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """bool to 0 where something is seen and a very negative number where not."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)
