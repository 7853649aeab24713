"""Figures and tests on the samples that runs have in common."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmexp.compare import compare, load_folders
from mmexp.compare.comparison import Comparison, front
from tests.compare.runs import MLP2X, make_run


def _compared(tmp_path: Path) -> Comparison:
    return compare(load_folders([str(tmp_path)]))


def test_means_and_tests_over_seeds(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = random.integers(0, 2, 100)
    for seed in (0, 1):
        make_run(tmp_path / f"a{seed}", scores=[1.0] * 60 + [float(s) for s in base[60:]], seed=seed)
        make_run(tmp_path / f"b{seed}", scores=[float(s) for s in base], seed=seed, config=MLP2X)
    comparison = _compared(tmp_path)
    best, other = comparison.groups
    assert best.label == "connector.depth=1"
    test = comparison.tests["heldout/vqa/exact_match", other.label]
    assert test.difference.mean == pytest.approx(-float(60 - base[:60].sum()) / 100)
    assert test.difference.num_samples == 100
    assert test.adjusted_p < 0.01
    interval = comparison.intervals["heldout/vqa/exact_match", best.label]
    assert (interval.n, interval.half) == (2, 0)
    assert comparison.notes == []


def test_the_reference_may_be_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", scores=[1, 1])
    make_run(tmp_path / "b", scores=[0, 1], config=MLP2X)
    comparison = compare(load_folders([str(tmp_path)]), baseline="depth=2")
    assert comparison.reference.label == "connector.depth=2"
    assert comparison.tests["heldout/vqa/exact_match", "connector.depth=1"].difference.mean == pytest.approx(0.5)


def test_different_evaluation_sets_are_compared_on_what_they_share(tmp_path: Path) -> None:
    make_run(tmp_path / "a", scores=[1, 1, 0, 0], ids=["s0", "s1", "s2", "s3"])
    make_run(tmp_path / "b", scores=[0, 1, 1], ids=["s1", "s2", "s9"], config=MLP2X)
    comparison = _compared(tmp_path)
    (note,) = comparison.notes
    assert "3 to 4 each" in note
    assert "compared on the 2" in note
    means = {label: one.mean for (name, label), one in comparison.intervals.items() if name == comparison.main}
    assert means == {"connector.depth=1": 0.5, "connector.depth=2": 0.5}
    assert not any(name.endswith("/f1") for name in comparison.metrics), "made of other samples"
    assert [key[0] for key in comparison.samples["heldout/vqa"].keys] == ["s1", "s2"]


def test_sets_without_a_common_sample(tmp_path: Path) -> None:
    make_run(tmp_path / "a", ids=["a", "b", "c", "d"])
    make_run(tmp_path / "b", ids=["e", "f", "g", "h"], config=MLP2X)
    comparison = _compared(tmp_path)
    assert "share none" in comparison.notes[0]
    assert comparison.main == "train/loss"
    assert comparison.samples == {}


def test_the_same_id_with_another_target_is_another_sample(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    run = make_run(tmp_path / "b", config=MLP2X)
    file = run / "predictions" / "heldout_vqa.jsonl"
    file.write_text(file.read_text().replace("target s0", "another world"))
    assert "compared on the 3" in _compared(tmp_path).notes[0]


def test_no_scores_and_no_predictions_are_said(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    run = make_run(tmp_path / "b", config=MLP2X)
    file = run / "predictions" / "heldout_vqa.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "score"}) + "\n" for line in lines))
    comparison = _compared(tmp_path)
    assert "no score for each sample" in comparison.notes[0]
    assert comparison.tests == {}
    file.unlink()
    assert "1 of 2 runs have no predictions here" in _compared(tmp_path).notes[0]


def test_the_front_of_cost_and_quality(tmp_path: Path) -> None:
    for name, depth, scores, step_s in (
        ("a", 1, [1, 0, 0], 0.1),
        ("b", 2, [1, 1, 0], 0.2),
        ("c", 3, [1, 0, 0], 0.3),
        ("d", 4, [0, 0, 0], 0.09999),
    ):
        config = {"connector": {"_target_": "mmexp.connector.MlpConfig", "depth": depth}}
        make_run(tmp_path / name, scores=scores, config=config, step_s=step_s)
    assert front(_compared(tmp_path), "train_s") == {"connector.depth=1", "connector.depth=2"}


def test_a_box_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    for name, config, written in (("a", {}, "[{}, 0.5, 0.6, 0.7]"), ("b", MLP2X, "<box>({},500),(600,700)</box>")):
        run = make_run(tmp_path / name, config=config)
        file = run / "predictions" / "heldout_vqa.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for at, line in enumerate(lines):
            line["target"] = written.format(at)
            line["boxes"] = {"target": [at / 10 + (1e-4 if name == "a" else 0), 0.5, 0.6, 0.7], "predicted": None}
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = _compared(tmp_path)
    assert comparison.notes == []
    assert len(comparison.samples["heldout/vqa"].keys) == 4
