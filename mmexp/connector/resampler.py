"""Qwen-VL's resampler: learned queries look at the patches once, so that any grid becomes as many soft tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.contracts import EncoderSpec

_WIDTH_OF_A_HEAD = 128
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """One cross-attention from `num_queries` learned queries to the patches, then LayerNorm and a square matrix.

    Source: Qwen-VL (arXiv 2308.12966) section 2.1; `visual.py` as published with Qwen/Qwen-VL, `Resampler`, and the
    `ln_post` and `proj` that its vision transformer applies to the resampler's output.
    """

    num_queries: int = 256
    """N; a square number, since queries have places in the picture."""
    width: int | None = None
    """Width of the attention; null takes the LLM's, as Qwen-VL does. Must be a multiple of 4."""
    num_heads: int | None = None
    """Attention heads; null takes one for every 128 channels, at least one."""

    def num_soft_tokens(self, encoder: EncoderSpec) -> int:
        side = math.isqrt(max(self.num_queries, 0))
        if side < 1 or side * side != self.num_queries:
            raise ConfigError(
                f"{self.num_queries}",
                expected="a square number, since queries have places in the picture",
                where="connector.num_queries",
                fix=f"connector.num_queries={max(side, 1) ** 2}",
            )
        if encoder.num_prefix:
            raise ConfigError(
                "the encoder keeps its CLS token, which has no place in a grid",
                expected="patches only",
                where="connector",
                fix="encoder.select_feature=patch",
            )
        return self.num_queries

    def soft_grid(self, encoder: EncoderSpec) -> tuple[int, int] | None:
        return None

    def build(self, encoder: EncoderSpec, llm_width: int) -> Resampler:
        side = math.isqrt(self.num_soft_tokens(encoder))
        width = llm_width if self.width is None else self.width
        num_heads = max(1, width // _WIDTH_OF_A_HEAD) if self.num_heads is None else self.num_heads
        if width < 4 or width % 4:
            raise ConfigError(
                f"{width}",
                expected="a multiple of 4: sine and cosine of column and row",
                where="connector.width" if self.width is not None else "the LLM's width",
                fix=f"connector.width={max(4, width - width % 4)}",
            )
        if num_heads < 1 or width % num_heads:
            raise ConfigError(f"{num_heads}", expected=f"a divisor of the width {width}", where="connector.num_heads")
        return Resampler(side, encoder.grid, encoder.width, width, num_heads, llm_width)


class Resampler(nn.Module):
    """See `ResamplerConfig`. Keys are those of Qwen-VL below `transformer.visual.`, so a policy can say what its
    fine-tuning script does: `{attn_pool: full, ln_post: frozen, proj: frozen}`.

    Args:
        side: Rows, and columns, of the queries.
        grid: Patch rows and columns.
        encoder_width: E
        width: Of the attention.
        num_heads: Of the attention.
        llm_width: D
    """

    def __init__(
        self, side: int, grid: tuple[int, int], encoder_width: int, width: int, num_heads: int, llm_width: int
    ) -> None:
        super().__init__()
        self.attn_pool = AttentionPool(side, grid, encoder_width, width, num_heads)
        self.ln_post = nn.LayerNorm(width, eps=_EPS)
        self.proj = nn.Parameter(torch.empty(width, llm_width))
        nn.init.normal_(self.proj, std=width**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """float[M, P, E] to float[M, N, D]."""
        return self.ln_post(self.attn_pool(features)) @ self.proj

    def query_maps(self, features: Tensor) -> Tensor:
        """float[M, P, E] to float32[M, 1, heads, N, P]."""
        return self.attn_pool.weights(features)[:, None]


class AttentionPool(nn.Module):
    """Queries look at the patches once. Positions are added to queries and keys, not to values; arguments as of
    `Resampler`.
    """

    pos_embed: Tensor
    """float[Q, width], fixed. Belongs to the state because published checkpoints have it."""

    def __init__(self, side: int, grid: tuple[int, int], encoder_width: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.side = side
        self.grid = grid
        self.query = nn.Parameter(torch.empty(side * side, width))
        self.register_buffer("pos_embed", sine_cosine(side, side, width))
        same = encoder_width == width
        self.kv_proj = nn.Identity() if same else nn.Linear(encoder_width, width, bias=False)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.ln_q = nn.LayerNorm(width, eps=_EPS)
        self.ln_kv = nn.LayerNorm(width, eps=_EPS)
        nn.init.trunc_normal_(self.query, std=0.02)
        for linear in (self.kv_proj, self.attn.out_proj):
            if isinstance(linear, nn.Linear):
                nn.init.trunc_normal_(linear.weight, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """float[M, P, E] to float[M, N, width]."""
        return self.attn(*self._rows(features), need_weights=False)[0]

    def weights(self, features: Tensor) -> Tensor:
        """How much each query takes from each patch: float32[M, heads, N, P]."""
        return self.attn(*self._rows(features), need_weights=True, average_attn_weights=False)[1].float()

    def _rows(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries float[M, N, width], keys and values float[M, P, width]."""
        values = self.ln_kv(self.kv_proj(features))
        keys = values + self.key_positions().to(values.dtype)
        queries = (self.ln_q(self.query) + self.pos_embed.to(values.dtype)).expand(len(features), -1, -1)
        return queries, keys, values

    def key_positions(self) -> Tensor:
        """float32[P, width]: the queries' positions, resized to the patch grid."""
        table = self.pos_embed.float()
        if self.grid == (self.side, self.side):
            return table
        maps = table.unflatten(0, (self.side, self.side)).permute(2, 0, 1)[None]
        return functional.interpolate(maps, self.grid, mode="bicubic", align_corners=False)[0].flatten(1).T


def sine_cosine(rows: int, columns: int, width: int) -> Tensor:
    """float32[rows * columns, width]: the first half of the channels tells the column, the second the row; in each
    half sines, then cosines, of frequencies falling from 1 to nearly 1/10000.

    Source: MAE `util/pos_embed.py`, which Qwen-VL's `visual.py` follows.
    """
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    halves = []
    for places in (torch.arange(columns).repeat(rows), torch.arange(rows).repeat_interleave(columns)):
        angles = places.double()[:, None] * frequencies
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float()
