"""Objectives: what is minimised, kept apart from the model and from the trainer."""

from mmexp.objective.base import Objective, ObjectiveConfig
from mmexp.objective.contrastive import Contrastive, ContrastiveConfig
from mmexp.objective.next_token import NextToken, NextTokenConfig

__all__ = ["Contrastive", "ContrastiveConfig", "NextToken", "NextTokenConfig", "Objective", "ObjectiveConfig"]
