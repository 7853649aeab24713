"""Objectives: what is minimised, kept apart from the model and from the trainer."""

from mmexp.objective.base import Objective, ObjectiveConfig
from mmexp.objective.next_token import NextToken, NextTokenConfig
from mmexp.objective.region_contrastive import RegionContrastive, RegionContrastiveConfig

__all__ = [
    "NextToken",
    "NextTokenConfig",
    "Objective",
    "ObjectiveConfig",
    "RegionContrastive",
    "RegionContrastiveConfig",
]
