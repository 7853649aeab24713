"""Evaluation: benchmarks own their metric and know of a model only the predict function they are given."""

from mmexp.evaluation.base import BenchmarkConfig, Graded, Predict
from mmexp.evaluation.caption import CaptionConfig
from mmexp.evaluation.grounding import GroundingConfig
from mmexp.evaluation.runner import evaluate, merge_results
from mmexp.evaluation.vqa import VqaConfig

__all__ = [
    "BenchmarkConfig",
    "CaptionConfig",
    "Graded",
    "GroundingConfig",
    "Predict",
    "VqaConfig",
    "evaluate",
    "merge_results",
]
