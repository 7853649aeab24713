"""Objectives: what is minimised, kept apart from the model and from the trainer."""

from mmexp.objective.base import Embedding, Objective, ObjectiveConfig
from mmexp.objective.blip2 import Blip2Represent, Blip2RepresentConfig
from mmexp.objective.next_token import NextToken, NextTokenConfig
from mmexp.objective.region_contrastive import RegionContrastive, RegionContrastiveConfig

__all__ = [
    "Blip2Represent",
    "Blip2RepresentConfig",
    "Embedding",
    "NextToken",
    "NextTokenConfig",
    "Objective",
    "ObjectiveConfig",
    "RegionContrastive",
    "RegionContrastiveConfig",
]
