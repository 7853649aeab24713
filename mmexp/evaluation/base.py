"""The contract of a benchmark: which samples, which predictor it needs, and how answers are graded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from mmexp.contracts import Sample
from mmexp.errors import ConfigError, DataError
from mmexp.prompt import BoxText

if TYPE_CHECKING:
    from torch import Tensor

Predict = Callable[[Sequence[Sample]], list[str]]
"""Samples that end with a user turn, to one answer each, in order."""


class Score(NamedTuple):
    """How likely a model finds an answer."""

    log_prob: float
    """Natural logarithm, summed over its tokens."""
    num_tokens: int


Scorer = Callable[[Sequence[Sample], Sequence[Sequence[str]], bool], list[list[Score]]]
"""Samples that end with a user turn, candidates for each of them, and whether what ends an answer counts too, to the
scores of the candidates as answers."""


class Match(Protocol):
    """Compares images with texts; the second method speaks of those of the last call of the first."""

    def similarities(self, samples: Sequence[Sample], texts: Sequence[str], batch_size: int) -> Tensor:
        """float[I, U] on the CPU: how near each of I images (one a sample) and each of U texts are."""
        ...

    def agreement(self, pairs: Tensor, batch_size: int) -> Tensor | None:
        """int64[K, 2] of image and text to float[K]: how much they belong together, None where nothing can say it."""
        ...


BASELINES = ("blind", "majority")


@dataclass(frozen=True, kw_only=True)
class Graded:
    """What a benchmark says about a list of predictions."""

    scores: tuple[float, ...]
    """One per sample; their mean is the primary metric."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further figures of the whole list."""
    details: tuple[Mapping[str, Any], ...] = ()
    """Per sample what else belongs into its line of the predictions file; empty or one each."""
    texts: tuple[str, ...] = ()
    """Per sample what its prediction says, where that is no text for readers; empty or one each."""


class Grader(Protocol):
    """Grades the answers of one model; see `BenchmarkConfig` for its methods."""

    def grade(self, samples: Sequence[Sample], predictions: Sequence[str]) -> Graded: ...

    def majority(self, samples: Sequence[Sample]) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(ABC):
    """One benchmark as data. A subclass names its `primary` metric and grades.

    Samples end with an assistant turn, which is the answer; `meta` may hold `type` (a word that figures are broken
    down by), `targets` (all accepted answers), `box` (x0, y0, x1, y1, each 0 to 1), `options` (texts to choose from)
    and `right` (place of the right option, from 0).
    """

    primary: ClassVar[str] = "score"
    """Name of the mean score in results.json."""

    splits: Mapping[str, Any]
    """Split name to a data config, whose `build()` gives a `contracts.Dataset`."""
    stage_kinds: tuple[str, ...] = ()
    """After which kinds of stage this runs by itself."""
    needs: Literal["generate", "score", "embed"] = "generate"
    """Which of the model's predictors answers."""
    max_new_tokens: int = 32
    """Longest answer."""
    min_new_tokens: int = 0
    """Shortest answer."""
    num_beams: int = 1
    """Answers followed side by side (beam search); 1 is greedy."""
    length_penalty: float = 1.0
    """With beams: below 0 prefers short answers, above it long ones."""
    batch_size: int = 32
    """Samples given to the predictor at once."""
    limit: int | None = None
    """At most this many samples of a split, evenly spread over it; null takes all."""
    baselines: tuple[str, ...] = BASELINES
    """What stands beside every figure: `blind` (image replaced by grey), `majority` (most frequent answer)."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.baselines if name not in BASELINES]:
            raise ConfigError(f"{unknown[0]!r}", expected=" or ".join(BASELINES), where="evaluation.*.baselines")
        for key in ("batch_size", "max_new_tokens", "num_beams", "limit"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{value}", expected="at least 1", where=f"evaluation.*.{key}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError(f"{self.min_new_tokens}", expected=f"0 to max_new_tokens={self.max_new_tokens}",
                              where="evaluation.*.min_new_tokens")  # fmt: skip

    def check(self, sample: Sample) -> None:
        """Raises DataError for a sample that cannot be asked or graded; nothing is asked before all of a split pass."""
        answer(sample)

    def grader(self, boxes: BoxText) -> Grader:
        """What grades the answers of a model that writes boxes in this way; most benchmarks need not know.

        Args:
            boxes: Reads boxes out of answers, and writes them.
        """
        return self

    @abstractmethod
    def grade(self, samples: Sequence[Sample], predictions: Sequence[str]) -> Graded:
        """A score for every prediction, and figures of all of them together."""

    def majority(self, samples: Sequence[Sample]) -> list[str]:
        """For each sample the answer given most often to questions of its type, in these very samples.

        The baseline sees the answers it is graded on, so it is the best a constant answer per type can do.
        """
        groups = group_by_type(samples)
        common = {kind: Counter(self.canonical(targets(s)[0]) for s in group) for kind, group in groups.items()}
        return [common[question_type(sample)].most_common(1)[0][0] for sample in samples]

    def canonical(self, text: str) -> str:
        """The form in which two answers are compared."""
        return text.strip()


def question_type(sample: Sample) -> str:
    """`meta.type`, empty when the data has none."""
    return str(sample.meta.get("type") or "")


def group_by_type(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Samples under their question type, types in the order of their first sample."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(question_type(sample), []).append(sample)
    return groups


def answer(sample: Sample) -> str:
    """Text of the closing assistant turn.

    Raises:
        DataError: The sample does not end with an answer to somebody.
    """
    turns = sample.turns
    if not turns or turns[-1].role != "assistant" or not any(turn.role == "user" for turn in turns[:-1]):
        roles = ", ".join(turn.role for turn in turns) or "none"
        raise DataError(
            f"turns: {roles}",
            expected="a question by the user and, last, the assistant's answer",
            where=f"{sample.dataset or 'evaluation data'}, sample {sample.id}",
            fix="add the answer to the row, or leave the row out of this benchmark",
        )
    return turns[-1].text.strip()


def targets(sample: Sample) -> tuple[str, ...]:
    """Every accepted answer: `meta.targets`, else the closing turn."""
    accepted = sample.meta.get("targets")
    if isinstance(accepted, str):
        return (accepted,)
    return tuple(str(text) for text in accepted) if accepted else (answer(sample),)
