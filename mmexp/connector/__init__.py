"""Connectors turn patch features into soft tokens of the LLM's width (papers say projector, bridge or adapter)."""

from mmexp.connector.base import ConnectorConfig
from mmexp.connector.concat import ConcatLinear, ConcatLinearConfig
from mmexp.connector.mlp import IdentityConfig, MlpConfig
from mmexp.connector.perceiver import Perceiver, PerceiverConfig
from mmexp.connector.pool import AveragePool, AveragePoolConfig
from mmexp.connector.qformer import Qformer, QformerConfig, QformerConnector
from mmexp.connector.resampler import Resampler, ResamplerConfig

__all__ = [
    "AveragePool",
    "AveragePoolConfig",
    "ConcatLinear",
    "ConcatLinearConfig",
    "ConnectorConfig",
    "IdentityConfig",
    "MlpConfig",
    "Perceiver",
    "PerceiverConfig",
    "Qformer",
    "QformerConfig",
    "QformerConnector",
    "Resampler",
    "ResamplerConfig",
]
