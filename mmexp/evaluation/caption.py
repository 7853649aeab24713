"""Captions against reference captions: CIDEr-D, BLEU-4 and ROUGE-L, written from the papers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import ClassVar

from mmexp.contracts import Sample
from mmexp.evaluation.base import BenchmarkConfig, Graded, targets

Tokens = list[str]
NGram = tuple[str, ...]

_PUNCTUATION = re.compile(r"^[^\w&$%#@*+=/<>]+$")
_TOKEN = re.compile(
    r"n't\b|'(?:s|m|d|re|ve|ll)\b|\d+(?:[.,:]\d+)+|(?:[a-z]\.){2,}|[\w&$%#@*+=/<>]+?(?=n't\b)"
    r"|[\w&$%#@*+=/<>]+(?:[-.][\w&$%#@*+=/<>]+)*|[^\w\s]"
)


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(BenchmarkConfig):
    """Captioning. The document frequencies of CIDEr-D come from this split's references, so figures of different
    splits or limits are not comparable, and a single sample always scores 0."""

    primary: ClassVar[str] = "cider_d"

    max_new_tokens: int = 64
    """Longest caption."""

    def grade(self, samples: Sequence[Sample], predictions: Sequence[str]) -> Graded:
        candidates = [tokenize(text) for text in predictions]
        references = [[tokenize(text) for text in targets(sample)] for sample in samples]
        return Graded(
            scores=tuple(cider_d(candidates, references)),
            metrics={
                "bleu_4": bleu(candidates, references),
                "rouge_l": fmean(rouge_l(one, many) for one, many in zip(candidates, references, strict=True)),
            },
        )


def tokenize(text: str) -> Tokens:
    """Words in the manner of the Penn Treebank: lower case, contractions split, punctuation dropped.

    >>> tokenize("A man's well-worn hat, isn't it?")
    ['a', 'man', "'s", 'well-worn', 'hat', 'is', "n't", 'it']
    """
    words = _TOKEN.findall(text.lower().replace("cannot", "can not").replace("\u2019", "'"))
    return [word for word in words if not _PUNCTUATION.match(word)]


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], sigma: float = 6.0) -> list[float]:
    """CIDEr-D of each candidate, n = 1 to 4, on the usual scale of 0 to 10.

    Source: Vedantam et al. 2015, section 5. As in the COCO caption code the length is counted in bigrams.
    """
    frequency: Counter[NGram] = Counter()
    for group in references:
        frequency.update({gram for tokens in group for gram in _ngrams(tokens)})
    log_documents = math.log(max(len(references), 1))

    def weigh(tokens: Tokens) -> list[dict[NGram, float]]:
        vectors: list[dict[NGram, float]] = [{}, {}, {}, {}]
        for gram, count in _ngrams(tokens).items():
            vectors[len(gram) - 1][gram] = count * (log_documents - math.log(max(1, frequency[gram])))
        return vectors

    scores = []
    for candidate, group in zip(candidates, references, strict=True):
        own = weigh(candidate)
        values = []
        for tokens in group:
            gap = max(len(candidate) - 1, 0) - max(len(tokens) - 1, 0)
            pairs = zip(own, weigh(tokens), strict=True)
            values.append(fmean(_clipped_cosine(a, b) for a, b in pairs) * math.exp(-(gap**2) / (2 * sigma**2)))
        scores.append(10 * fmean(values))
    return scores


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], order: int = 4) -> float:
    """Corpus BLEU: clipped precisions of n = 1 to `order`, brevity penalty with the closest reference length.

    Source: Papineni et al. 2002; the two small constants that keep empty counts finite are the COCO caption code's.
    """
    matched, total = [0] * order, [0] * order
    length = reference_length = 0
    for candidate, group in zip(candidates, references, strict=True):
        length += len(candidate)
        reference_length += min((abs(len(r) - len(candidate)), len(r)) for r in group)[1]
        ceiling: Counter[NGram] = Counter()
        for tokens in group:
            ceiling |= _ngrams(tokens, order)
        for gram, count in _ngrams(candidate, order).items():
            matched[len(gram) - 1] += min(count, ceiling[gram])
            total[len(gram) - 1] += count
    product = math.prod((hit + 1e-15) / (all_ + 1e-9) for hit, all_ in zip(matched, total, strict=True))
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    return product ** (1 / order) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def rouge_l(candidate: Tokens, references: Sequence[Tokens], beta: float = 1.2) -> float:
    """F-measure of the longest common subsequence, best precision and best recall over the references.

    Source: Lin 2004; beta as in the COCO caption code.
    """
    common = [_common_length(candidate, tokens) for tokens in references]
    precision = max(common) / len(candidate) if candidate else 0.0
    recall = max(c / len(r) if r else 0.0 for c, r in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _ngrams(tokens: Tokens, order: int = 4) -> Counter[NGram]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, order + 1) for i in range(len(tokens) - n + 1))


def _clipped_cosine(one: dict[NGram, float], other: dict[NGram, float]) -> float:
    norm = math.sqrt(sum(v * v for v in one.values())) * math.sqrt(sum(v * v for v in other.values()))
    dot = sum(min(value, other[gram]) * other[gram] for gram, value in one.items() if gram in other)
    return dot / norm if norm else 0.0


def _common_length(one: Tokens, other: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        above = row
        row = [0]
        for (diagonal, up), candidate in zip(pairwise(above), other, strict=True):
            row.append(diagonal + 1 if word == candidate else max(up, row[-1]))
    return row[-1]
