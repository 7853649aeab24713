"""Connectors: shapes, keys and the grids they refuse."""

from __future__ import annotations

import pytest
import torch

from mmexp.connector import AveragePoolConfig, IdentityConfig, MlpConfig
from mmexp.contracts import EncoderSpec
from mmexp.errors import ConfigError

SPEC = EncoderSpec(width=8, grid=(4, 6))


@pytest.mark.parametrize("config", [MlpConfig(depth=1), MlpConfig(depth=2), MlpConfig(depth=3), AveragePoolConfig()])
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
