"""Evaluation: benchmarks own their metric and know of a model only the predict function they are given."""

from mmexp.evaluation.base import BenchmarkConfig, Graded, Match, Predict, Score
from mmexp.evaluation.caption import CaptionConfig
from mmexp.evaluation.choice import MultipleChoiceConfig
from mmexp.evaluation.grounding import GroundingConfig
from mmexp.evaluation.retrieval import RetrievalConfig
from mmexp.evaluation.runner import evaluate, merge_results
from mmexp.evaluation.vqa import VqaConfig

__all__ = [
    "BenchmarkConfig",
    "CaptionConfig",
    "Graded",
    "GroundingConfig",
    "Match",
    "MultipleChoiceConfig",
    "Predict",
    "RetrievalConfig",
    "Score",
    "VqaConfig",
    "evaluate",
    "merge_results",
]
