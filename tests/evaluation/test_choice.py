"""Multiple choice: figures worked out by hand, with a fake model that reads pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.errors import ConfigError, DataError
from mmexp.evaluation import MultipleChoiceConfig, Score, evaluate
from mmexp.evaluation.asking import Share

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@dataclass(frozen=True)
class Rows:
    samples: Sequence[Sample] = ()

    def build(self) -> Sequence[Sample]:
        return self.samples


def sample(name: str, colour: str, reply: str, **meta: Any) -> Sample:
    image = Image.new("RGB", (8, 6), COLOURS[colour])
    turns = (
        Turn(role="user", parts=(Medium(source=image), Text(text="Which colour?"))),
        Turn(role="assistant", parts=(Text(text=reply),)),
    )
    return Sample(id=name, dataset="colours", turns=turns, meta=meta)


ROWS = Rows(
    (
        sample("a", "red", "red", options=["blue", "red"], type="two"),
        sample("b", "red", "red", options=["red", "blue"], type="two"),
        sample("c", "blue", "blue", options=["red", "blue", "very blue"], type="three"),
        sample("d", "red", "blue", options=["red", "blue", "green"], type="three"),  # the picture lies
    )
)


def likely(samples: Sequence[Sample], candidates: Sequence[Sequence[str]], with_end: bool) -> list[list[Score]]:
    """The colour that is seen has -1 a word; without a colour, what stands first; long candidates are less likely."""

    def score(one: Sample, text: str, place: int) -> Score:
        seen = one.turns[0].media[0].source.getpixel((0, 0))
        known = {rgb: name for name, rgb in COLOURS.items()}.get(seen)
        words = text.split()
        return Score(-len(words) * (1.0 if known in words else 2.0 + 0.1 * place) + 0.5 * (len(words) - 1), len(words))

    pairs = zip(samples, candidates, strict=True)
    return [[score(one, text, place) for place, text in enumerate(each)] for one, each in pairs]


def run(out: Path, score: Any = likely, rows: Rows = ROWS, **settings: Any) -> tuple[dict[str, float], list[Any]]:
    config = MultipleChoiceConfig(splits={"held": rows}, batch_size=3, **settings)
    metrics = evaluate("choice", config, config.predictor(score), out, identity="weights")["held"]["choice"]
    lines = (out / "predictions" / "held_choice.jsonl").read_text().splitlines()
    return metrics, [json.loads(line) for line in lines]


def test_figures_and_predictions(tmp_path: Path) -> None:
    metrics, lines = run(tmp_path)
    assert next(iter(metrics)) == "accuracy"
    assert metrics["accuracy"] == pytest.approx(3 / 4)
    assert metrics["blind"] == pytest.approx(1 / 4)  # always the first: right in b alone
    assert metrics["majority"] == pytest.approx(3 / 4)  # the second place: a, c, d; in `two` the first of equals
    assert metrics["chance"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3 + 1 / 3) / 4, abs=1e-6)
    assert metrics["accuracy/three"] == pytest.approx(1 / 2)
    assert lines[3] == {
        "id": "d",
        "prompt": "Which colour?",
        "prediction": "red",
        "target": "blue",
        "score": 0.0,
        "type": "three",
        "image": None,
        "blind": "red",
        "blind_score": 0.0,
        "options": ["red", "blue", "green"],
        "chosen": "red",
        "right": "blue",
        "option_scores": [-1.0, -2.1, -2.2],
        "option_tokens": [1, 1, 1],
    }


def test_sums_and_means_can_differ(tmp_path: Path) -> None:
    assert run(tmp_path / "sum")[1][2]["chosen"] == "blue"  # -1.0 before -1.5
    lines = run(tmp_path / "mean", normalize="tokens")[1]
    assert lines[2]["option_scores"] == [-2.0, -1.0, -0.75]
    assert (lines[2]["chosen"], lines[2]["score"]) == ("very blue", 0.0)


def test_letters_stand_for_options(tmp_path: Path) -> None:
    asked: list[Any] = []

    def second(samples: Sequence[Sample], candidates: Sequence[Sequence[str]], with_end: bool) -> Any:
        asked.append((list(candidates), with_end))
        return [[Score(float(text == "B") - 3, 1) for text in each] for each in candidates]

    rows = Rows(
        (
            sample("a", "red", "B", options=["blue", "red"]),
            sample("b", "red", "A", options=["red", "blue", "green"]),
            sample("c", "red", "A", options=["B", "A"], right=0),  # options that are letters themselves
            sample("d", "red", "A", options=["B", "A"]),
        )
    )
    metrics, lines = run(tmp_path, second, rows, candidates="letters", baselines=("majority",), with_end=True)
    assert asked[0] == ([["A", "B"], ["A", "B", "C"], ["A", "B"]], True)
    assert [line["right"] for line in lines] == ["B", "A", "A", "B"]
    assert metrics["accuracy"] == 0.5
    assert [line["chosen"] for line in lines] == ["B"] * 4


def test_a_most_frequent_place_that_a_sample_lacks_is_its_first(tmp_path: Path) -> None:
    three = [sample(str(n), "red", "c", options=["a", "b", "c"]) for n in range(2)]
    rows = Rows((*three, sample("x", "red", "a", options=["a", "b"])))
    assert run(tmp_path, rows=rows)[0]["majority"] == 1.0


def test_stopped_and_shared_evaluations_give_the_same_figures(tmp_path: Path) -> None:
    asked: list[str] = []

    def stops(samples: Sequence[Sample], *others: Any) -> Any:
        if asked:
            raise KeyboardInterrupt
        return counted(samples, *others)

    def counted(samples: Sequence[Sample], *others: Any) -> Any:
        asked.extend(one.id for one in samples)
        return likely(samples, *others)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", stops)
    assert len(asked) == 3
    assert run(tmp_path / "run", counted) == whole
    assert len(asked) == 8  # four samples, with their picture and blind, each once
    config = MultipleChoiceConfig(splits={"held": ROWS}, batch_size=3)
    for index in (1, 0):
        evaluate("choice", config, config.predictor(likely), tmp_path / "shares", identity="weights",
                 share=Share(index, 2))  # fmt: skip

    def never(*args: Any) -> Any:
        raise AssertionError("all of it is answered")

    assert run(tmp_path / "shares", never) == whole


def test_other_options_are_asked_anew(tmp_path: Path) -> None:
    rows = list(ROWS.samples[:1])
    config = MultipleChoiceConfig(splits={"held": Rows(rows)}, baselines=())
    evaluate("choice", config, config.predictor(likely), tmp_path, identity="weights", share=Share(0, 1))
    asked: list[Any] = []

    def counted(samples: Sequence[Sample], candidates: Sequence[Sequence[str]], with_end: bool) -> Any:
        asked.extend(candidates)
        return likely(samples, candidates, with_end)

    rows[0] = sample("a", "red", "red", options=["blue", "green", "red"], type="two")  # as if the file had changed
    evaluate("choice", config, config.predictor(counted), tmp_path, identity="weights")
    assert asked == [["blue", "green", "red"]]


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, r"colours, sample s: no options.*evaluation=vqa"),
        ({"options": ["red"]}, r"`options` is \['red'\].*2 texts or more"),
        ({"options": "red, blue"}, "`options` is 'red, blue'"),
        ({"options": ["red", " "]}, "2 texts or more"),
        ({"options": ["green", "blue"]}, r"the answer 'red' is none of the options green, blue"),
        ({"options": ["green", "red"], "right": 2}, "`right` is 2.*0 to 1"),
        ({"options": ["green", "red"], "right": True}, "`right` is True"),
        ({"options": [f"{n}" for n in range(27)], "right": 1}, "27 options.*at most 26"),
    ],
)
def test_rows_that_cannot_be_asked(meta: dict[str, Any], message: str, tmp_path: Path) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("nothing is asked before all rows are right")

    rows = Rows((*ROWS.samples, sample("s", "red", "red", **meta)))
    with pytest.raises(DataError, match=f"(?s){message}"):
        run(tmp_path, never, rows, candidates="letters")


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="texts or letters"):
        MultipleChoiceConfig(splits={}, candidates="numbers")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="none or tokens"):
        MultipleChoiceConfig(splits={}, normalize="bytes")  # type: ignore[arg-type]
