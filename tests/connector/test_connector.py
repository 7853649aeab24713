"""Connectors: shapes, keys and the grids they refuse."""

from __future__ import annotations

import pytest
import torch

from mmexp.connector import AveragePoolConfig, ConcatLinearConfig, IdentityConfig, MlpConfig
from mmexp.contracts import EncoderSpec
from mmexp.errors import ConfigError

SPEC = EncoderSpec(width=8, grid=(4, 6))


@pytest.mark.parametrize(
    "config", [MlpConfig(depth=1), MlpConfig(depth=2), MlpConfig(depth=3), AveragePoolConfig(), ConcatLinearConfig()]
)
def test_output_has_the_announced_number_of_soft_tokens(config: MlpConfig) -> None:
    out = config.build(SPEC, 16)(torch.randn(3, SPEC.num_patches, 8))
    assert out.shape == (3, config.num_soft_tokens(SPEC), 16)


def test_mlp2x_has_the_keys_of_the_published_file() -> None:
    shapes = {name: tuple(t.shape) for name, t in MlpConfig(depth=2).build(SPEC, 16).state_dict().items()}
    assert shapes == {"0.weight": (16, 8), "0.bias": (16,), "2.weight": (16, 16), "2.bias": (16,)}
    assert MlpConfig(depth=2).build(SPEC, 16)[1].approximate == "none"


def test_average_pool_takes_the_mean_of_neighbours() -> None:
    module = AveragePoolConfig(factor=2).build(SPEC, 8)
    torch.nn.init.eye_(module.linear.weight)
    torch.nn.init.zeros_(module.linear.bias)
    maps = torch.randn(1, 4, 6, 8)
    expected = maps[0, :2, :2].mean((0, 1))
    torch.testing.assert_close(module(maps.flatten(1, 2))[0, 0], expected)


def test_identity_needs_equal_widths() -> None:
    assert isinstance(IdentityConfig().build(SPEC, 8), torch.nn.Identity)
    with pytest.raises(ConfigError, match="connector=linear"):
        IdentityConfig().build(SPEC, 16)


def test_pooling_refuses_a_grid_it_cannot_divide() -> None:
    with pytest.raises(ConfigError, match="4 x 6"):
        AveragePoolConfig(factor=3).num_soft_tokens(SPEC)
    with pytest.raises(ConfigError, match="CLS"):
        AveragePoolConfig().num_soft_tokens(EncoderSpec(width=8, grid=(4, 4), num_prefix=1))


def test_concat_joins_neighbours_of_a_row_and_drops_cls() -> None:
    """MiniGPT-4 with Llama-2 in a plain formula: CLS off, then view(bs, P / 4, 4 E), then a linear layer."""
    spec = EncoderSpec(width=5, grid=(4, 8), num_prefix=1)
    config = ConcatLinearConfig()
    module = config.build(spec, 7)
    features = torch.randn(3, 33, 5)
    patches = features[:, 1:, :]
    expected = patches.reshape(3, 8, 20) @ module.proj.weight.T + module.proj.bias
    torch.testing.assert_close(module(features), expected)
    side_by_side = torch.cat([features[0, 1 + 8 + 4 + offset] for offset in range(4)])
    torch.testing.assert_close(module(features)[0, 3], module.proj(side_by_side))  # row 1, columns 4 to 7
    assert config.num_soft_tokens(spec) == 8
    assert config.soft_grid(spec) == (2, 4)


def test_concat_at_the_published_size() -> None:
    spec = EncoderSpec(width=1408, grid=(16, 16), num_prefix=1)
    with torch.device("meta"):
        module = ConcatLinearConfig().build(spec, 4096)
    assert ConcatLinearConfig().num_soft_tokens(spec) == 64
    assert sum(parameter.numel() for parameter in module.parameters()) == 23_072_768
    assert module(torch.empty(2, 257, 1408, device="meta")).shape == (2, 64, 4096)


def test_concat_refuses_a_number_it_cannot_divide() -> None:
    with pytest.raises(ConfigError, match="24 patches"):
        ConcatLinearConfig(length=5).num_soft_tokens(SPEC)
    assert ConcatLinearConfig(length=8).soft_grid(SPEC) is None
    with pytest.raises(ConfigError, match="there is none"):
        ConcatLinearConfig().build(SPEC, 0)
