"""Qwen-VL's resampler against the published steps, written down with plain matrix products."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from mmexp.connector import Resampler, ResamplerConfig
from mmexp.contracts import EncoderSpec
from mmexp.encoder import TinyVisionConfig
from mmexp.errors import ConfigError
from mmexp.llm import TinyLlmConfig
from mmexp.model import Branch, MultimodalModel
from mmexp.tuning import LoraSettings, apply_policy
from tests.differences import Differences

WIDTH, HEADS, E, D = 24, 3, 10, 16


def published_positions(side: int, width: int) -> torch.Tensor:
    """MAE's table, entry by entry."""
    table = torch.zeros(side * side, width)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for half, place in enumerate((column, row)):
                for i in range(quarter):
                    angle = place / 10000 ** (i / quarter)
                    table[row * side + column, half * 2 * quarter + i] = math.sin(angle)
                    table[row * side + column, half * 2 * quarter + quarter + i] = math.cos(angle)
    return table


def published_steps(state: dict[str, torch.Tensor], features: torch.Tensor, side: int, heads: int) -> torch.Tensor:
    """Sequence first, as published: nn.MultiheadAttention from the same numbers, positions on queries and keys only."""
    state = {name.removeprefix("attn_pool."): tensor for name, tensor in state.items()}
    positions = published_positions(16, state["query"].shape[1])
    width = positions.shape[1]
    attention = torch.nn.MultiheadAttention(width, heads)
    attention.load_state_dict({key[5:]: value for key, value in state.items() if key.startswith("attn.")})
    maps = positions.reshape(1, 16, 16, width).permute(0, 3, 1, 2)
    resized = functional.interpolate(maps, size=(side, side), mode="bicubic", align_corners=False)
    key_positions = resized.permute(0, 2, 3, 1).flatten(0, 2) if side != 16 else positions
    x = features @ state["kv_proj.weight"].T
    x = functional.layer_norm(x, (width,), state["ln_kv.weight"], state["ln_kv.bias"], 1e-6).permute(1, 0, 2)
    q = functional.layer_norm(state["query"], (width,), state["ln_q.weight"], state["ln_q.bias"], 1e-6)
    q = q[:, None].repeat(1, len(features), 1)
    out = attention(q + positions[:, None], x + key_positions[:, None], x)[0].permute(1, 0, 2)
    out = functional.layer_norm(out, (width,), state["ln_post.weight"], state["ln_post.bias"], 1e-6)
    return out @ state["proj"]


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Every weight random, so that no default hides a missing step."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("side", [16, 32])
def test_equals_the_published_steps(differences: Differences, side: int) -> None:
    spec = EncoderSpec(width=E, grid=(side, side))
    module = shaken(ResamplerConfig(width=WIDTH, num_heads=HEADS).build(spec, D))
    features = torch.randn(2, side * side, E)
    with torch.no_grad():
        out = module(features)
        expected = published_steps(module.state_dict(), features, side, HEADS)
    assert out.shape == (2, 256, D)
    differences("Qwen-VL's resampler", f"{side} x {side}", out, expected, 1e-5, 1e-5)


def test_attention_equals_matrix_products() -> None:
    spec = EncoderSpec(width=E, grid=(2, 3))
    module = shaken(ResamplerConfig(num_queries=4, width=8, num_heads=2).build(spec, D))
    pool, features = module.attn_pool, torch.randn(1, 6, E)
    with torch.no_grad():
        v = pool.ln_kv(pool.kv_proj(features))[0]
        q = pool.ln_q(pool.query) + published_positions(2, 8)
        k = v + pool.key_positions()
        w, b = pool.attn.in_proj_weight.chunk(3), pool.attn.in_proj_bias.chunk(3)
        q, k, v = (x @ w[i].T + b[i] for i, x in enumerate((q, k, v)))
        heads = [((q[:, s] @ k[:, s].T) / 2).softmax(1) @ v[:, s] for s in (slice(0, 4), slice(4, 8))]
        taken = torch.cat(heads, 1) @ pool.attn.out_proj.weight.T + pool.attn.out_proj.bias
        torch.testing.assert_close(module(features)[0], module.ln_post(taken) @ module.proj)


def test_published_size_and_names() -> None:
    with torch.device("meta"):
        module = ResamplerConfig().build(EncoderSpec(width=1664, grid=(32, 32)), 4096)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    pool = {
        "query": (256, 4096),
        "pos_embed": (256, 4096),
        "kv_proj.weight": (4096, 1664),
        "attn.in_proj_weight": (12288, 4096),
        "attn.in_proj_bias": (12288,),
        "attn.out_proj.weight": (4096, 4096),
        "attn.out_proj.bias": (4096,),
        **{f"{norm}.{name}": (4096,) for norm in ("ln_q", "ln_kv") for name in ("weight", "bias")},
    }
    outside = {"ln_post.weight": (4096,), "ln_post.bias": (4096,), "proj": (4096, 4096)}
    assert shapes == {f"attn_pool.{name}": shape for name, shape in pool.items()} | outside
    assert module.attn_pool.attn.num_heads == 32
    assert "attn_pool.pos_embed" not in dict(module.named_parameters())


def test_a_policy_can_say_what_the_published_fine_tuning_trains() -> None:
    spec = TinyVisionConfig().spec()
    branch = Branch(TinyVisionConfig().build(), ResamplerConfig(num_queries=4).build(spec, 32), spec)
    model = MultimodalModel(TinyLlmConfig().build(), {"image": branch})
    tree = {"attn_pool": "full", "ln_post": "frozen", "proj": "frozen"}
    apply_policy(model, {"encoder": "frozen", "connector": tree, "llm": "frozen"}, LoraSettings())
    trained = {name.split(".")[0] for name, p in branch.connector.named_parameters() if p.requires_grad}
    assert trained == {"attn_pool"}


def test_positions_of_a_checkpoint_are_used() -> None:
    """Fine-tuning scripts of Qwen-VL train the table, so a checkpoint's own one rules."""
    module = ResamplerConfig(num_queries=4, width=8).build(EncoderSpec(width=E, grid=(4, 4)), D).attn_pool
    table = torch.randn(4, 8)
    module.load_state_dict({**module.state_dict(), "pos_embed": table})
    maps = table.reshape(1, 2, 2, 8).permute(0, 3, 1, 2)
    expected = functional.interpolate(maps, (4, 4), mode="bicubic")[0].flatten(1).T
    torch.testing.assert_close(module.key_positions(), expected)


def test_weights_fit_every_resolution() -> None:
    config = ResamplerConfig(num_queries=4, width=8)
    first = config.build(EncoderSpec(width=E, grid=(2, 2)), D)
    second = config.build(EncoderSpec(width=E, grid=(4, 4)), D)
    second.load_state_dict(first.state_dict())
    assert second(torch.randn(1, 16, E)).shape == (1, 4, D)


def test_a_small_llm_gets_one_head_and_equal_widths_no_projection() -> None:
    module = ResamplerConfig(num_queries=4).build(EncoderSpec(width=48, grid=(2, 2)), 48)
    assert isinstance(module, Resampler)
    assert module.attn_pool.attn.num_heads == 1
    assert isinstance(module.attn_pool.kv_proj, torch.nn.Identity)


def test_runs_in_bfloat16() -> None:
    module = ResamplerConfig(num_queries=4, width=8).build(EncoderSpec(width=E, grid=(4, 4)), D).bfloat16()
    assert module(torch.randn(1, 16, E, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "spec", "where"),
    [
        ({"num_queries": 250}, EncoderSpec(width=E, grid=(4, 4)), "connector.num_queries"),
        ({"num_queries": -1}, EncoderSpec(width=E, grid=(4, 4)), "connector.num_queries"),
        ({}, EncoderSpec(width=E, grid=(4, 4), num_prefix=1), "connector"),
        ({"width": 30}, EncoderSpec(width=E, grid=(4, 4)), "connector.width"),
        ({"width": 32, "num_heads": 5}, EncoderSpec(width=E, grid=(4, 4)), "connector.num_heads"),
    ],
)
def test_mistakes_are_named(settings: dict, spec: EncoderSpec, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ResamplerConfig(**settings).build(spec, D)
    assert caught.value.where == where
