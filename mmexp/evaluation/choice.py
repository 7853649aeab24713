"""Multiple choice: which option the model finds most likely, by log-probabilities instead of by what it says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from string import ascii_uppercase
from typing import Any, ClassVar, Literal

from mmexp.contracts import Sample
from mmexp.errors import ConfigError, DataError
from mmexp.evaluation.base import BenchmarkConfig, Graded, Predict, Score, Scorer, group_by_type, question_type, targets

_CHOICES = {"candidates": ("texts", "letters"), "normalize": ("none", "tokens")}


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceConfig(BenchmarkConfig):
    """Questions with `meta.options`: 1 when the most likely one (the first of equals) is the right one, else 0.

    The right one is at `meta.right`, counted from 0; without it, the option that is an accepted answer
    (`meta.targets`, else the closing turn), or the one whose letter is. Answers are graded before they end, so options
    of different length are compared more fairly `with_end`, or with `normalize: tokens`. `chance` is among the figures.

    Source: Brown et al., Language Models are Few-Shot Learners, section 2.4 (likelihood of each completion, and per
    token).
    """

    primary: ClassVar[str] = "accuracy"

    needs: Literal["generate", "score", "embed"] = "score"
    """Which of the model's predictors answers."""
    candidates: Literal["texts", "letters"] = "texts"
    """What is scored: the options as they are, or A, B, ... for prompts that list them under letters."""
    normalize: Literal["none", "tokens"] = "none"
    """Options are compared by the sum of their tokens' log-probabilities, or by the mean (`tokens`)."""
    with_end: bool = False
    """Whether what ends an answer in the template is scored too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{getattr(self, name)!r}", expected=" or ".join(allowed), where=f"evaluation.*.{name}"
                )

    def check(self, sample: Sample) -> None:
        """Raises DataError for a sample without two options or more, or whose options miss the right one."""
        super().check(sample)
        right_place(sample)
        if self.candidates == "letters" and len(options_of(sample)) > len(ascii_uppercase):
            found, most = len(options_of(sample)), len(ascii_uppercase)
            raise _wrong(sample, f"{found} options", f"at most {most} under letters", "candidates: texts")

    def predictor(self, score: Scorer) -> Predict:
        """What gives for each sample the scores of its candidates, in a line of JSON (see `grade`)."""

        def predict(samples: Sequence[Sample]) -> list[str]:
            scores = score(samples, [self._candidates(sample) for sample in samples], self.with_end)
            return [json.dumps(each) for each in scores]

        return predict

    def grade(self, samples: Sequence[Sample], predictions: Sequence[str]) -> Graded:
        """Each prediction is a list of log-probability and number of tokens of every option, as JSON."""
        found = [self._choose(*pair) for pair in zip(samples, predictions, strict=True)]
        return Graded(
            scores=tuple(float(each["chosen"] == each["right"]) for each in found),
            metrics={"chance": fmean(1 / len(options_of(sample)) for sample in samples)},
            details=tuple(found),
            texts=tuple(each["chosen"] for each in found),
        )

    def majority(self, samples: Sequence[Sample]) -> list[str]:
        """For each sample the place that is right most often in questions of its type, in these very samples; the first
        one where there is no such place."""
        groups = group_by_type(samples)
        common = {kind: Counter(map(right_place, group)).most_common(1)[0][0] for kind, group in groups.items()}
        places = [(common[question_type(sample)], len(options_of(sample))) for sample in samples]
        return [json.dumps([Score(-float(at != place), 1) for at in range(size)]) for place, size in places]

    def _choose(self, sample: Sample, prediction: str) -> dict[str, Any]:
        """What belongs into a sample's line of the predictions file; `option_scores` are those that were compared."""
        own, scores = self._candidates(sample), [Score(*each) for each in json.loads(prediction)]
        compared = [each.log_prob / (each.num_tokens if self.normalize == "tokens" else 1) for each in scores]
        chosen = max(range(len(own)), key=compared.__getitem__)
        return {
            "options": options_of(sample),
            "chosen": own[chosen],
            "right": own[right_place(sample)],
            "option_scores": [round(value, 6) for value in compared],
            "option_tokens": [each.num_tokens for each in scores],
        }

    def _candidates(self, sample: Sample) -> list[str]:
        options = options_of(sample)
        return options if self.candidates == "texts" else list(ascii_uppercase[: len(options)])


def options_of(sample: Sample) -> list[str]:
    """`meta.options`. Raises DataError unless they are 2 texts or more."""
    options: Any = sample.meta.get("options")
    fits = isinstance(options, list) and all(isinstance(each, str) and each.strip() for each in options)
    if not fits or len(options) < 2:
        raise _wrong(sample, "no options" if options is None else f"`options` is {repr(options)[:80]}",
                     "a list of 2 texts or more", "give the row its `options`, or take evaluation=vqa")  # fmt: skip
    return options


def right_place(sample: Sample) -> int:
    """Which option is right, from 0. Raises DataError when none is, or as `options_of`."""
    options, right = options_of(sample), sample.meta.get("right")
    if right is None:
        accepted = [text.strip() for text in targets(sample)]
        places = [
            at
            for texts in (options, ascii_uppercase[: len(options)])
            for at, text in enumerate(texts)
            if text.strip() in accepted
        ]
        right = places[0] if places else None
        shown = ", ".join(accepted)[:60]
        if right is None:
            raise _wrong(sample, f"the answer {shown!r} is none of the options {', '.join(options)[:80]}",
                         "one of them, or its letter", "add it to `options`, or say its place: `right`")  # fmt: skip
    if not isinstance(right, int) or isinstance(right, bool) or not 0 <= right < len(options):
        raise _wrong(sample, f"`right` is {repr(right)[:60]}", f"0 to {len(options) - 1}", "count options from 0")
    return right


def _wrong(sample: Sample, found: str, expected: str, fix: str) -> DataError:
    where = f"{sample.dataset or 'evaluation data'}, sample {sample.id}"
    return DataError(found, expected=expected, where=where, fix=fix)
