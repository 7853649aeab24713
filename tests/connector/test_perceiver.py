"""Flamingo's perceiver resampler against the paper's steps, one latent and one head at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mmexp.connector import PerceiverConfig
from mmexp.contracts import EncoderSpec
from mmexp.errors import ConfigError

SPEC = EncoderSpec(width=12, grid=(2, 3), num_prefix=1)
SMALL = {"num_latents": 3, "depth": 2, "num_heads": 2, "head_width": 5}


def norm(values: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return functional.layer_norm(values, values.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def plain(state: dict[str, torch.Tensor], picture: torch.Tensor, activation: str) -> torch.Tensor:
    """float[P, E] of one picture to float[N, D]."""
    media, latents = picture + state["media_pos_emb"][0], state["latents"]
    for layer in range(2):
        a, f = f"layers.{layer}.0", f"layers.{layer}.1"
        own = norm(latents, state, f"{a}.norm_latents")
        seen = torch.cat([norm(media, state, f"{a}.norm_media"), own])
        keys, values = (seen @ state[f"{a}.to_kv.weight"].T).split(10, dim=1)
        queries = own @ state[f"{a}.to_q.weight"].T
        rows = []
        for i in range(len(latents)):
            heads = []
            for head in (slice(0, 5), slice(5, 10)):
                weights = torch.softmax(keys[:, head] @ queries[i, head] / 5**0.5, 0)
                heads.append((weights[:, None] * values[:, head]).sum(0))
            rows.append(state[f"{a}.to_out.weight"] @ torch.cat(heads))
        latents = latents + torch.stack(rows)
        hidden = norm(latents, state, f"{f}.0") @ state[f"{f}.1.weight"].T
        hidden = hidden.clamp(min=0) ** 2 if activation == "squared_relu" else functional.gelu(hidden)
        latents = latents + hidden @ state[f"{f}.3.weight"].T
    return norm(latents, state, "norm") @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("activation", ["squared_relu", "gelu"])
def test_equals_the_plain_formulation(activation: str) -> None:
    module = PerceiverConfig(**SMALL, activation=activation).build(SPEC, 7)
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    features = torch.randn(2, SPEC.num_patches, 12)
    with torch.no_grad():
        out = module(features)
        expected = torch.stack([plain(module.state_dict(), picture, activation) for picture in features])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_published_sizes() -> None:
    with torch.device("meta"):
        module = PerceiverConfig().build(EncoderSpec(width=1536, grid=(10, 10)), 4096)
    assert PerceiverConfig().num_soft_tokens(SPEC) == 64
    assert len(module.layers) == 6
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes["layers.5.0.to_kv.weight"] == (3072, 1536)
    assert shapes["layers.5.1.1.weight"] == (6144, 1536)
    assert shapes["latents"] == (64, 1536)
    assert not [name for name in shapes if name.endswith("bias") and ".to_" in name]


@pytest.mark.parametrize("name", ["num_latents", "depth", "num_heads", "head_width", "mlp_ratio"])
def test_mistakes_are_named(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PerceiverConfig(**{**SMALL, name: 0}).build(SPEC, 7)
    assert caught.value.where == f"connector.{name}"
