"""The runner with a fake model that really reads pixels."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.errors import CheckpointError, ConfigError, DataError
from mmexp.evaluation import CaptionConfig, GroundingConfig, VqaConfig, evaluate, merge_results
from mmexp.evaluation.asking import Share

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@dataclass(frozen=True)
class Rows:
    """A data config over samples in memory."""

    samples: Sequence[Sample] = field(default_factory=tuple)

    def build(self) -> Sequence[Sample]:
        return self.samples


def sample(number: int, question: str, reply: str, source: Any, **meta: Any) -> Sample:
    turns = (
        Turn(role="user", parts=(Medium(source=source), Text(text=question))),
        Turn(role="assistant", parts=(Text(text=reply),)),
    )
    return Sample(id=f"s{number}", dataset="colours", turns=turns, meta=meta)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Six images of two colours, five asked for colour, one for existence."""
    samples = []
    for number, colour in enumerate(["red", "red", "red", "blue", "blue"]):
        file = tmp_path / "run" / "images" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), COLOURS[colour]).save(file)
        samples.append(sample(number, "Which colour?", colour, str(file), type="colour"))
    data = io.BytesIO()
    Image.new("RGB", (8, 6), COLOURS["blue"]).save(data, "PNG")
    samples.append(sample(5, "Is it blue?", "yes", data.getvalue(), type="existence"))
    return Rows(tuple(samples))


def look(samples: Sequence[Sample]) -> list[str]:
    """Names the colour; says "red" when it sees neither; never sees the answer."""
    answers = []
    for one in samples:
        assert [turn.role for turn in one.turns] == ["user"]
        source = one.turns[0].media[0].source
        image = (
            source
            if isinstance(source, Image.Image)
            else Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        )
        assert image.size == (8, 6)
        colour = "blue" if image.convert("RGB").getpixel((0, 0)) == COLOURS["blue"] else "red"
        answers.append(f"The {colour}." if "colour" in one.turns[0].text else ("Yes" if colour == "blue" else "No"))
    return answers


def test_figures_and_predictions(rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sizes: list[int] = []

    def predict(samples: Sequence[Sample]) -> list[str]:
        sizes.append(len(samples))
        return look(samples)

    results = evaluate("toy", VqaConfig(splits={"held": rows}, batch_size=4), predict, out)
    metrics = results["held"]["toy"]
    assert sizes == [4, 2, 4, 2]
    assert next(iter(metrics)) == "exact_match"
    assert metrics["exact_match"] == 1.0
    assert metrics["blind"] == pytest.approx(3 / 6)
    assert metrics["majority"] == pytest.approx(4 / 6, abs=1e-6)
    assert metrics["exact_match/colour"] == 1.0
    assert metrics["blind/colour"] == pytest.approx(3 / 5)
    assert metrics["blind/existence"] == 0.0
    assert metrics["num_samples"] == 6
    lines = [json.loads(line) for line in (out / "predictions" / "held_toy.jsonl").read_text().splitlines()]
    assert lines[3] == {
        "id": "s3",
        "prompt": "Which colour?",
        "prediction": "The blue.",
        "target": "blue",
        "score": 1.0,
        "type": "colour",
        "image": "images/3.png",
        "blind": "The red.",
        "blind_score": 0.0,
    }
    assert lines[5]["image"] is None
    assert not list(out.rglob("*.tmp"))


def test_baselines_can_be_left_out(rows: Rows, tmp_path: Path) -> None:
    metrics = evaluate("toy", VqaConfig(splits={"held": rows}, baselines=()), look, tmp_path)["held"]["toy"]
    assert "blind" not in metrics
    assert "majority" not in metrics
    assert "blind" not in json.loads((tmp_path / "predictions" / "held_toy.jsonl").read_text().splitlines()[0])


def test_limit_is_spread_over_the_split(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6))
    rows = Rows([sample(n, "Which colour?", "red", image) for n in range(10)])
    evaluate("toy", VqaConfig(splits={"held": rows}, limit=5, baselines=()), look, tmp_path)
    lines = (tmp_path / "predictions" / "held_toy.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["s0", "s2", "s4", "s6", "s8"]


def test_grounding(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6))
    boxes = [[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.1, 0.1, 0.6, 0.6]]
    rows = Rows([sample(n, "Where?", str(box), image, box=box) for n, box in enumerate(boxes)])
    replies = iter(["[0.0, 0.0, 0.5, 0.5]", "somewhere", "at [0.1, 0.1, 0.6, 0.4]"])
    config = GroundingConfig(splits={"held": rows}, baselines=("majority",))
    metrics = evaluate("refer", config, lambda s: [next(replies) for _ in s], tmp_path)["held"]["refer"]
    assert metrics["accuracy_iou50"] == pytest.approx(2 / 3, abs=1e-6)
    assert metrics["mean_iou"] == pytest.approx(1.6 / 3, abs=1e-6)
    assert metrics["unparsable"] == pytest.approx(1 / 3, abs=1e-6)
    lines = [json.loads(x) for x in (tmp_path / "predictions" / "held_refer.jsonl").read_text().splitlines()]
    assert lines[1]["boxes"] == {"target": [0.5, 0.5, 1.0, 1.0], "predicted": None}
    assert lines[2]["iou"] == pytest.approx(0.6)


def test_caption_prefers_the_better_model(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6))
    texts = ["a red circle above a blue square", "two green triangles", "the letter b on white paper"]
    rows = Rows([sample(n, "", text, image, targets=[text, text + " here"]) for n, text in enumerate(texts)])
    config = CaptionConfig(splits={"held": rows})
    good = evaluate("cap", config, lambda s: [texts[int(one.id[1:])] for one in s], tmp_path)["held"]["cap"]
    bad = evaluate("cap", config, lambda s: ["a green circle"] * len(s), tmp_path)["held"]["cap"]
    assert list(good)[:5] == ["cider_d", "blind", "majority", "bleu_4", "rouge_l"]
    assert good["cider_d"] > 5
    assert bad["cider_d"] < 2
    assert good["cider_d"] > good["majority"]
    assert good["bleu_4"] == pytest.approx(1.0, abs=1e-3)


def test_merge_keeps_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    merge_results(file, {"a": {"vqa": {"exact_match": 0.1}}, "b": {"vqa": {"exact_match": 0.2}}})
    merged = merge_results(file, {"a": {"vqa": {"exact_match": 0.9}, "cap": {"cider_d": 1.0}}})
    assert merged == json.loads(file.read_text())
    assert merged == {
        "a": {"vqa": {"exact_match": 0.9}, "cap": {"cider_d": 1.0}},
        "b": {"vqa": {"exact_match": 0.2}},
    }
    file.write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        merge_results(file, {})


def test_mistakes_are_named(rows: Rows, tmp_path: Path) -> None:
    unanswered = Sample(id="s9", dataset="colours", turns=rows.samples[0].turns[:1])
    with pytest.raises(DataError, match="colours, sample s9"):
        evaluate("toy", VqaConfig(splits={"held": Rows([unanswered])}), look, tmp_path)
    with pytest.raises(DataError, match=r"evaluation.toy.splits.held: no samples"):
        evaluate("toy", VqaConfig(splits={"held": Rows()}), look, tmp_path)
    with pytest.raises(ConfigError, match="no split 'test'"):
        evaluate("toy", VqaConfig(splits={"held": rows}), look, tmp_path, splits=["test"])
    with pytest.raises(ConfigError, match="baselines"):
        VqaConfig(splits={}, baselines=("deaf",))
    with pytest.raises(ConfigError, match="min_new_tokens"):
        VqaConfig(splits={}, min_new_tokens=20, max_new_tokens=10)
    with pytest.raises(ConfigError, match="num_beams"):
        VqaConfig(splits={}, num_beams=0)
    with pytest.raises(ConfigError, match="batch_size"):
        VqaConfig(splits={}, batch_size=0)
    with pytest.raises(DataError, match="cannot be opened"):
        evaluate(
            "toy", VqaConfig(splits={"held": Rows([sample(0, "?", "x", "/no/file.png")])}), lambda s: ["x"], tmp_path
        )
    with pytest.raises(ValueError, match="gave 0 answers for 4"):
        evaluate("toy", VqaConfig(splits={"held": rows}, batch_size=4), lambda s: [], tmp_path)


def test_a_stopped_evaluation_goes_on(rows: Rows, tmp_path: Path) -> None:
    benchmark = VqaConfig(splits={"test": rows}, batch_size=2)
    asked: list[str] = []

    def stops_after(number: int) -> Any:
        def predict(samples: Sequence[Sample]) -> list[str]:
            if len(asked) >= number:
                raise KeyboardInterrupt
            asked.extend(one.id for one in samples)
            return look(samples)

        return predict

    with pytest.raises(KeyboardInterrupt):
        evaluate("vqa", benchmark, stops_after(8), tmp_path, identity="weights")
    kept = tmp_path / "predictions" / ".test_vqa.answers"
    kept.write_text(kept.read_text() + '{"key": "cut')  # the write that a kill has cut off
    assert sorted(asked) == sorted([*["s0", "s1", "s2", "s3", "s4", "s5"], *asked[6:]])
    evaluate("vqa", benchmark, stops_after(99), tmp_path, identity="weights")
    assert len(asked) == 12  # six samples, with their picture and blind, each once
    assert not kept.exists()
    whole = (tmp_path / "predictions" / "test_vqa.jsonl").read_text()
    evaluate("vqa", benchmark, look, tmp_path / "anew")
    lines = [json.loads(line) | {"image": ""} for line in whole.splitlines()]
    anew = (tmp_path / "anew" / "predictions" / "test_vqa.jsonl").read_text().splitlines()
    assert lines == [json.loads(line) | {"image": ""} for line in anew]


def test_answers_of_other_weights_are_not_taken(rows: Rows, tmp_path: Path) -> None:
    benchmark = VqaConfig(splits={"test": rows}, batch_size=6, baselines=("blind",))

    def first_pass(samples: Sequence[Sample]) -> list[str]:
        if len(seen) == 6:  # the blind pass
            raise KeyboardInterrupt
        seen.extend(one.id for one in samples)
        return look(samples)

    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        evaluate("vqa", benchmark, first_pass, tmp_path, identity="weights of yesterday")
    asked: list[str] = []
    evaluate("vqa", benchmark, lambda samples: asked.extend(one.id for one in samples) or look(samples), tmp_path,
             identity="weights of today")  # fmt: skip
    assert len(asked) == 12


def test_shares_become_the_figures_of_one_process(rows: Rows, tmp_path: Path) -> None:
    benchmark = VqaConfig(splits={"test": rows}, batch_size=2)
    asked: list[tuple[str, bool]] = []

    def predict(samples: Sequence[Sample]) -> list[str]:
        asked.extend((one.id, isinstance(one.turns[0].media[0].source, Image.Image)) for one in samples)
        return look(samples)

    whole = evaluate("vqa", benchmark, look, tmp_path / "whole")
    for index in (2, 0, 1):
        share = Share.parse(f"{index}/3")
        assert evaluate("vqa", benchmark, predict, tmp_path / "run", identity="weights", share=share) == {}
    assert len(asked) == len(set(asked)) == 12  # nothing twice, nothing left out
    assert evaluate("vqa", benchmark, predict, tmp_path / "run", identity="weights") == whole
    assert len(asked) == 12
    assert [file.name for file in (tmp_path / "run" / "predictions").iterdir()] == ["test_vqa.jsonl"]


@pytest.mark.parametrize("text", ["4/4", "1", "-1/2", "a/b", "0/0"])
def test_a_share_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="INDEX/COUNT"):
        Share.parse(text)
