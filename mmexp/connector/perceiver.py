"""Flamingo's perceiver resampler: latents that attend to the patches and to themselves, several layers deep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional

from mmexp.connector.base import attention_weights, before_calls
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.contracts import EncoderSpec


class SquaredRelu(nn.Module):
    """`max(x, 0)^2`"""

    def forward(self, values: Tensor) -> Tensor:
        """Any shape."""
        return values.relu().square()


_ACTIVATIONS: dict[str, type[nn.Module]] = {"squared_relu": SquaredRelu, "gelu": nn.GELU}


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig:
    """Latents of the encoder's width; after the last layer LayerNorm and one linear layer to the LLM's width.

    Patches get no positions here: the encoder has given them theirs. The time embedding of a single picture is kept.

    Source: Flamingo (arXiv 2204.14198) appendix A.1; layers and names as in lucidrains/flamingo-pytorch @ 10913ab.
    Flamingo has no layer to D, since its LLM reads the latents by cross-attention.
    """

    num_latents: int = 64
    """N"""
    depth: int = 6
    """Layers, each one attention and one feed-forward block, both pre-norm."""
    num_heads: int = 16
    """Attention heads."""
    head_width: int = 96
    """Channels of a head; the attention may be wider or narrower than the encoder."""
    mlp_ratio: float = 4.0
    """Width of the feed-forward block as a multiple of E."""
    activation: Literal["squared_relu", "gelu"] = "squared_relu"
    """Of the feed-forward block: `squared_relu` in the paper, `gelu` in flamingo-pytorch."""

    def num_soft_tokens(self, encoder: EncoderSpec) -> int:
        if self.num_latents < 1:
            raise ConfigError(f"{self.num_latents}", expected="at least 1", where="connector.num_latents")
        return self.num_latents

    def soft_grid(self, encoder: EncoderSpec) -> tuple[int, int] | None:
        return None

    def build(self, encoder: EncoderSpec, llm_width: int) -> Perceiver:
        self.num_soft_tokens(encoder)
        for name in ("depth", "num_heads", "head_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)}", expected="at least 1", where=f"connector.{name}")
        if int(self.mlp_ratio * encoder.width) < 1:
            raise ConfigError(f"{self.mlp_ratio}", expected="more than 0", where="connector.mlp_ratio")
        return Perceiver(self, encoder.width, llm_width)


class Perceiver(nn.Module):
    """See `PerceiverConfig`."""

    def __init__(self, config: PerceiverConfig, width: int, llm_width: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(config.num_latents, width))
        self.media_pos_emb = nn.Parameter(torch.randn(1, 1, width))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(width, config.num_heads, config.head_width),
                    _feed_forward(width, int(config.mlp_ratio * width), _ACTIVATIONS[config.activation]()),
                ]
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """float[M, P, E] to float[M, N, D]."""
        media = features + self.media_pos_emb
        latents = self.latents.expand(len(features), -1, -1)
        for attend, feed_forward in self.layers:  # type: ignore[misc]  # each layer is a pair
            latents = latents + attend(media, latents)
            latents = latents + feed_forward(latents)
        return self.linear(self.norm(latents))

    def query_maps(self, features: Tensor) -> Tensor:
        """float[M, P, E] to float32[M, layers, heads, N, P]. A latent's rest up to 1 is what it takes from latents."""
        found: list[Tensor] = []
        attends = [layer[0] for layer in self.layers]  # type: ignore[index]  # each layer is a pair
        with before_calls(attends, lambda attend, *args: found.append(attend.weights(*args))):
            self(features)
        return torch.stack(found, 1)


class PerceiverAttention(nn.Module):
    """Queries from latents, keys and values from patches and latents together; no biases."""

    def __init__(self, width: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_width
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        """Patches float[M, P, E] and latents float[M, N, E] to what the latents take up, float[M, N, E]."""
        taken = functional.scaled_dot_product_attention(*self._split(media, latents))
        return self.to_out(taken.transpose(1, 2).flatten(2))

    def weights(self, media: Tensor, latents: Tensor) -> Tensor:
        """How much each latent takes from each patch: float32[M, heads, N, P]."""
        query, key, _ = self._split(media, latents)
        return attention_weights(query, key)[..., : media.shape[1]]

    def _split(self, media: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by heads: float[M, heads, N or P + N, head width]."""
        latents = self.norm_latents(latents)
        both = torch.cat([self.norm_media(media), latents], dim=1)
        query, key, value = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.to_q(latents), *self.to_kv(both).chunk(2, dim=2))
        )
        return query, key, value


def _feed_forward(width: int, hidden: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, hidden, bias=False), activation, nn.Linear(hidden, width, bias=False)
    )
