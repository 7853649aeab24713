"""Retrieval: figures worked out by hand, and a second ranking that stays among the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.errors import ConfigError
from mmexp.evaluation import RetrievalConfig, evaluate


def sample(name: str, *texts: str) -> Sample:
    user = Turn(role="user", parts=(Medium(source=f"{name}.png"), Text(text="?")))
    turns = (user, Turn(role="assistant", parts=(Text(text=texts[0]),)))
    return Sample(id=name, turns=turns, meta={"targets": list(texts)})


class Given:
    """Similarities and agreements from tables."""

    def __init__(self, near: torch.Tensor, agree: torch.Tensor | None) -> None:
        self.near, self.agree = near, agree
        self.asked: list[tuple[int, int]] = []

    def similarities(self, samples: list[Sample], texts: list[str], batch_size: int) -> torch.Tensor:
        assert texts == ["one", "uno", "two", "three"]
        return self.near

    def agreement(self, pairs: torch.Tensor, batch_size: int) -> torch.Tensor | None:
        self.asked += [(int(image), int(text)) for image, text in pairs]
        return None if self.agree is None else self.agree[pairs[:, 0], pairs[:, 1]]


SAMPLES = [sample("a", "one", "uno"), sample("b", "two"), sample("c", "three")]
NEAR = torch.tensor([[0.1, 0.5, 0.6, 0.2], [0.3, 0.2, 0.4, 0.9], [0.0, 0.1, 0.2, 0.8]])
# by contrast: a finds two, b finds three, c finds three; one finds b, uno finds a, two finds a, three finds b


def test_recall_by_contrast_alone() -> None:
    found, figures = RetrievalConfig(splits={}).retrieve(SAMPLES, Given(NEAR, None))
    assert found == ["two", "three", "three"]
    assert figures["image_recall_1"] == figures["itc_image_recall_1"] == 1 / 4
    assert figures["itc_text_recall_1"] == pytest.approx(1 / 3)
    assert figures["text_recall_5"] == figures["image_recall_10"] == 1
    assert figures["chance"] == pytest.approx(4 / 12)


def test_matching_ranks_the_nearest_again_and_no_others() -> None:
    agree = torch.zeros(3, 4)
    agree[0, 1] = agree[1, 2] = 1.0  # mends a and b
    agree[2, 0] = 50.0  # never asked: `one` is not among the two nearest of c
    given = Given(NEAR, agree)
    config = RetrievalConfig(splits={}, top_k=2)
    found, figures = config.retrieve(SAMPLES, given)
    assert found == ["uno", "two", "three"]
    assert config.grade(SAMPLES, found).scores == (1.0, 1.0, 1.0)
    assert given.asked[:6] == [(0, 2), (0, 1), (1, 3), (1, 2), (2, 3), (2, 2)]
    assert len(given.asked) == 3 * 2 + 4 * 2
    assert figures["itc_text_recall_1"] == pytest.approx(1 / 3)


def test_runs_like_any_benchmark(tmp_path: Path) -> None:
    class Split:
        def build(self) -> list[Sample]:
            return SAMPLES

    config = RetrievalConfig(splits={"test": Split()})
    results = evaluate("retrieval", config, Given(NEAR, None), tmp_path, Console(quiet=True))
    figures = results["test"]["retrieval"]
    assert next(iter(figures)) == "text_recall_1"
    assert figures["text_recall_1"] == pytest.approx(1 / 3, abs=1e-5)
    assert (tmp_path / "predictions" / "test_retrieval.jsonl").read_text().count("\n") == 3


def test_no_candidate_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="top_k"):
        RetrievalConfig(splits={}, top_k=0)
