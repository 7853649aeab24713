"""Short answers: exact match after a light normalisation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmexp.contracts import Sample
from mmexp.evaluation.base import BenchmarkConfig, Graded, targets

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True, kw_only=True)
class VqaConfig(BenchmarkConfig):
    """Visual question answering: 1 when the answer equals any accepted one, else 0; broken down by question type."""

    primary: ClassVar[str] = "exact_match"

    max_new_tokens: int = 16
    """Longest answer."""

    def grade(self, samples: Sequence[Sample], predictions: Sequence[str]) -> Graded:
        pairs = zip(samples, predictions, strict=True)
        return Graded(
            scores=tuple(
                float(normalize(text) in {normalize(target) for target in targets(sample)}) for sample, text in pairs
            )
        )

    def canonical(self, text: str) -> str:
        return normalize(text)


def normalize(text: str) -> str:
    """Lower case, no final period, no articles, single spaces.

    >>> normalize(" The red  circle. ")
    'red circle'
    """
    plain = text.lower().strip().rstrip(".")
    without = " ".join(_ARTICLES.sub(" ", plain).split())
    return without or " ".join(plain.split())  # the answer "a" (a letter that was read) must not vanish
