"""The perfect eye that the language part is trained with, and the study that uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmexp.config.paths import parts_dir
from mmexp.shapes import draw_scene
from mmexp.shapes.scenes import HELD_OUT, TEXT

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
LANGUAGE = str(parts_dir() / "language")


@pytest.fixture
def word_grid(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the study."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "oracle"))
    import word_grid

    return word_grid


def test_the_patch_in_the_middle_of_a_thing_tells_all_about_it(word_grid: Any) -> None:
    for index in range(20):
        scene = draw_scene(0, TEXT, index)
        shown = word_grid.cells(scene)
        assert len(shown) == 36
        for thing in scene.things:
            assert any(thing.full in cell and f"left {thing.box[0] / 100:.2f}" in cell for cell in shown), thing


def test_the_language_part_is_told_of_every_pair(word_grid: Any) -> None:
    """In the words of the perfect eye, in questions and in answers: about held-out pairs as about others."""
    data = word_grid.OracleScenesConfig(num_scenes=1500).build()
    samples = [data[index] for index in range(1500)]
    shown = " ".join(
        cell for sample in samples for turn in sample.turns for m in turn.media for cell in m.source.info["cells"]
    )
    for role in ("user", "assistant"):
        said = " ".join(turn.text for sample in samples for turn in sample.turns if turn.role == role)
        for colour, shape in HELD_OUT:
            assert f"{colour} {shape}" in said, (role, colour, shape)
            assert f"{colour} {shape}" in shown


def test_soft_tokens_are_sums_of_words(word_grid: Any) -> None:
    config = word_grid.WordGridConfig(path=LANGUAGE)
    scene = draw_scene(0, TEXT, 0)
    ids = config.transform("pad")(word_grid.picture(scene))
    assert tuple(ids.shape) == config.spec().item_shape
    eye = config.build()
    soft = eye(ids[None])
    assert soft.shape == (1, config.spec().num_patches, config.spec().width)
    torch.testing.assert_close(soft[0, 7], eye.words.weight[ids[7][ids[7] > 0]].sum(0))


@pytest.mark.slow
def test_the_study_trains(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmexp.train", "--config-dir", "experiments/oracle", "experiments=shapes_language",
         f"encoder.path={LANGUAGE}", f"llm.path={LANGUAGE}", "trainer.max_steps=3", "logger=none",
         f"paths.outputs={tmp_path}"],
        cwd=EXPERIMENTS.parent,
        env={**os.environ, "PYTHONPATH": "experiments/oracle"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert list(tmp_path.glob("shapes_parts/language/*/metrics.jsonl"))
