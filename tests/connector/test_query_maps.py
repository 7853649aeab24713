"""Attention of queries as shown, against what the fused calls of the same forward pass were given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from mmexp.connector import PerceiverConfig, QformerConfig, ResamplerConfig
from mmexp.contracts import EncoderSpec

SPEC = EncoderSpec(width=12, grid=(2, 3))
CONFIGS: dict[str, Any] = {
    "qformer": QformerConfig(num_queries=4, width=16, num_layers=4, num_heads=2, ffn_width=32),
    "perceiver": PerceiverConfig(num_latents=4, depth=2, num_heads=2, head_width=8),
    "resampler": ResamplerConfig(num_queries=4, width=16, num_heads=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_maps_are_the_weights_of_the_forward_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    connector = CONFIGS[name].build(SPEC, 8).eval()
    features = torch.randn(2, 6, 12)
    calls: list[torch.Tensor] = []

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        weights = ((query / query.shape[-1] ** 0.5) @ key.transpose(-1, -2)).softmax(-1)
        calls.append(weights.detach())
        return weights @ value

    with torch.no_grad():
        maps, soft = connector.query_maps(features), connector(features)
        monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
        torch.testing.assert_close(connector.train()(features) if name == "resampler" else connector(features), soft)
    if name == "resampler":
        calls = [_by_hand(connector, features)]
    crossing = [weights[..., :6] for weights in calls if weights.shape[-1] >= 6]
    assert maps.shape == (2, len(crossing), 2, 4, 6)
    torch.testing.assert_close(maps, torch.stack(crossing, 1))


def _by_hand(resampler: Any, features: torch.Tensor) -> torch.Tensor:
    """Qwen-VL's single attention with plain products."""
    pool = resampler.attn_pool
    with torch.no_grad():
        values = pool.ln_kv(pool.kv_proj(features))
        query, key = pool.ln_q(pool.query) + pool.pos_embed, values + pool.key_positions()
        wq, wk, _ = pool.attn.in_proj_weight.chunk(3)
        bq, bk, _ = pool.attn.in_proj_bias.chunk(3)
        q = (query @ wq.T + bq).unflatten(-1, (2, 8)).transpose(0, 1)
        k = (key @ wk.T + bk).unflatten(-1, (2, 8)).transpose(1, 2)
        return (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)


def test_a_query_that_looks_at_one_patch_is_seen_to() -> None:
    """The third patch's key is made to answer the query of the resampler alone."""
    torch.manual_seed(0)
    connector = ResamplerConfig(num_queries=4, width=12, num_heads=1).build(SPEC, 8).eval()
    with torch.no_grad():
        pool = connector.attn_pool
        query = (pool.ln_q(pool.query) + pool.pos_embed)[1] @ pool.attn.in_proj_weight[:12].T
        features = -torch.ones(1, 6, 12) + 1e-3 * torch.randn(1, 6, 12)
        features[0, 2] = query @ pool.attn.in_proj_weight[12:24]
        assert connector.query_maps(features)[0, 0, 0, 1].argmax() == 2


def test_nothing_stays_hooked() -> None:
    connector = CONFIGS["qformer"].build(SPEC, 8).eval()
    connector.query_maps(torch.randn(1, 6, 12))
    assert not any(module._forward_pre_hooks for module in connector.modules())
