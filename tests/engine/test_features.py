"""The feature cache in training: the same numbers with and without it, and never features of something else."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmexp.connector import QformerConfig
from mmexp.data import LlavaJsonConfig
from mmexp.encoder import ImageTransform, LavisVisionConfig, TinyVisionConfig
from mmexp.engine import StageJob, TrainerConfig, fit
from mmexp.engine.features import FeatureCache
from mmexp.engine.fill import fill
from mmexp.engine.log import console
from mmexp.engine.module import TrainingModule
from mmexp.errors import ConfigError
from mmexp.prompt import AnyRes, DynamicTiles, media
from tests.engine.conftest import StoppedAt

Make = Callable[..., StageJob]
LAVIS = LavisVisionConfig(
    path="", from_scratch=True, width=24, num_blocks=2, num_heads=2, mlp_width=36, patch_size_px=7, image_size_px=28
)
QFORMER = QformerConfig(num_queries=4, width=16, num_layers=2, num_heads=2, ffn_width=24)
ALIGN = {"encoder": "frozen", "connector": "full", "llm": "frozen"}


def run(job: StageJob) -> TrainingModule:
    return fit(job, lambda table: None)


def counts(job: StageJob) -> tuple[int, int]:
    found = job.run.manifest()["feature_cache"]
    return found["hits"], found["misses"]


def results(job: StageJob) -> tuple[list[float], dict[str, torch.Tensor]]:
    lines = (job.run.path / "metrics.jsonl").read_text().splitlines()
    weights = {
        f"{f.name} {key}": each for f in job.run.weights.glob("*.safetensors") for key, each in load_file(f).items()
    }
    return [json.loads(line)["train/loss"] for line in lines], weights


def assert_equal_runs(one: StageJob, other: StageJob) -> None:
    (mine, my_weights), (theirs, their_weights) = results(one), results(other)
    assert mine == theirs
    assert my_weights.keys() == their_weights.keys()
    assert all(torch.equal(tensor, their_weights[name]) for name, tensor in my_weights.items())


def with_parts(job: StageJob, **parts: Any) -> StageJob:
    inputs = {"image": replace(job.plan.inputs["image"], **parts)}
    return replace(job, plan=replace(job.plan, inputs=inputs))


def kept_shapes(job: StageJob) -> set[tuple[int, ...]]:
    assert job.cache is not None
    shards = (job.cache / "features").glob("**/*.safetensors")
    return {tuple(each.shape) for shard in shards for each in load_file(shard).values()}


@pytest.fixture
def cached(make_job: Make, tmp_path: Path) -> Make:
    """As `make_job`, with a cache that all jobs of a test share."""
    return lambda name, **changes: make_job(name, **{"cache": tmp_path / "c", "feature_cache_gb": 1.0, **changes})


QUERIES = {**ALIGN, "connector": {"qformer": "frozen", "proj": "full"}}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "one view": ({}, None),
    "workers": ({"num_workers": 2}, None),
    "padded and accumulated": ({"row": "padded", "micro_batch_size": 1}, None),
    "tiles": ({}, DynamicTiles(max_tiles=4)),
    "anyres": ({}, AnyRes(max_views=1)),
    "queries": ({"policy": QUERIES}, QFORMER),
    "queries of tiles": ({"policy": QUERIES, "tiling": DynamicTiles(max_tiles=4)}, QFORMER),
    "trained Q-Former": ({}, QFORMER),
    "trained norm": ({"policy": {**ALIGN, "encoder": {"vit": "frozen", "ln_vision": "full"}}}, LAVIS),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_are_bit_equal_with_and_without(
    make_job: Make, cached: Make, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    changes, special = CASES[case]
    changes = dict(changes)
    tiling = changes.pop("tiling", None)
    changes = {"max_steps": 9, "allow_random_frozen": True, "batch_size": 4, **changes}
    jobs = [make_job("plain", **changes), cached("cold", **changes), cached("warm", **changes)]
    if isinstance(special, LavisVisionConfig):
        jobs = [with_parts(job, encoder=special) for job in jobs]
    elif isinstance(special, QformerConfig):
        jobs = [with_parts(job, connector=special) for job in jobs]
        jobs = [replace(job, plan=replace(job.plan, tiling=tiling)) for job in jobs]
    elif special is not None:
        jobs = [replace(job, plan=replace(job.plan, tiling=special)) for job in jobs]
    plain, cold, warm = jobs
    run(plain)
    run(cold)
    if not warm.num_workers:  # a worker would not see the patch if it was started afresh

        def refuse(*args: Any) -> Any:
            raise AssertionError("a picture whose features are kept was decoded")

        monkeypatch.setattr(media, "LOADERS", {"image": refuse})
    run(warm)
    assert_equal_runs(plain, cold)
    assert_equal_runs(plain, warm)
    assert counts(cold)[1] > 0
    hits, misses = counts(warm)
    assert (hits, misses) == (sum(counts(cold)), 0)
    assert cold.num_workers or counts(cold)[0] > 0, "the second epoch finds what the first one encoded"
    assert "feature_cache" not in plain.run.manifest()
    widths = {shape[-2:] for shape in kept_shapes(cold)}
    assert case.startswith("queries") == (widths == {(QFORMER.num_queries, QFORMER.width)})


def test_a_stopped_run_with_features_is_the_run_without(make_job: Make, cached: Make, stopped_at: StoppedAt) -> None:
    whole, broken = make_job("whole", max_steps=8), cached("broken", max_steps=8)
    run(whole)
    for step in (2, 5):
        with stopped_at(step):
            run(broken)
    run(broken)
    assert_equal_runs(whole, broken)
    assert counts(broken)[0] > 0, "what was encoded before the signal was written"


@dataclass(frozen=True, kw_only=True)
class Flips(TinyVisionConfig):
    """Its transform turns every second picture around."""

    def transform(self, fit: Any) -> Any:
        return FlipTransform(size_px=self.image_size_px)


@dataclass(frozen=True, kw_only=True)
class FlipTransform:
    size_px: int

    def __call__(self, image: Image.Image) -> torch.Tensor:
        values = ImageTransform(size_px=self.size_px)(image)
        return values.flip(2) if torch.rand(()) < 0.5 else values


@dataclass(frozen=True, kw_only=True)
class Silent(TinyVisionConfig):
    """Its transform does not say what it does."""

    def transform(self, fit: Any) -> Any:
        return lambda image: torch.zeros(3, 28, 28)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: with_parts(job, encoder=Flips()), "something else of a picture each time"),
        (lambda job: with_parts(job, encoder=Silent()), "dataclasses of plain values"),
        (lambda job: replace(job, trainer=replace(job.trainer, strategy="fsdp")), "trainer=ddp_bf16"),
    ],
)
def test_what_makes_features_wrong_is_refused_before_weights_are_read(
    cached: Make, monkeypatch: pytest.MonkeyPatch, change: Callable[[StageJob], StageJob], message: str
) -> None:
    def refuse(self: Any) -> Any:
        raise AssertionError("weights were read")

    monkeypatch.setattr("mmexp.model.Plan.build", refuse)
    with pytest.raises(ConfigError, match=message) as caught:
        run(change(cached("run")))
    assert "processor.feature_cache=none" in str(caught.value)


def test_an_encoder_that_trains_is_refused(cached: Make) -> None:
    policy = {**ALIGN, "encoder": "full"}
    with pytest.raises(ConfigError, match=r"(?s)encoder trains.*feature_cache=none"):
        run(cached("run", policy=policy))


def test_another_encoder_transform_or_decoding_finds_nothing(cached: Make, tmp_path: Path) -> None:
    first = cached("first")
    run(first)
    others = {
        "weights": with_parts(cached("weights"), encoder=TinyVisionConfig(seed=1)),
        "transform": replace(cached("transform"), plan=replace(first.plan, image_fit="pad")),
        "backdrop": replace(cached("backdrop"), plan=replace(first.plan, backdrop=(0, 0, 0))),
        "precision": cached("precision", trainer=TrainerConfig(accelerator="cpu", precision="bf16-mixed")),
    }
    for number, (name, job) in enumerate(others.items(), 2):
        run(job)
        assert counts(job)[1] == counts(first)[1], name
        assert len(list((tmp_path / "c" / "features").iterdir())) == number
    again = cached("again", seed=5, policy={**ALIGN, "llm": "full"})
    run(again)
    assert counts(again)[0] > counts(first)[0], "another seed and policy use the same features"


def test_a_picture_that_was_changed_is_encoded_again(cached: Make, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for file in rows.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    data = LlavaJsonConfig(path=str(folder / "rows.json"))
    run(cached("first", data=data, max_steps=11))
    Image.new("RGB", (33, 30), (5, 5, 5)).save(folder / "2.png")
    second = cached("second", data=data, max_steps=11)
    run(second)
    assert counts(second)[1] == 1


def test_a_full_cache_says_so_once_and_training_goes_on(make_job: Make, cached: Make, caplog) -> None:
    plain, full = make_job("plain"), cached("full", feature_cache_gb=1e-9)
    run(plain)
    with caplog.at_level(logging.INFO, logger="mmexp"):
        run(full)
    assert_equal_runs(plain, full)
    assert caplog.text.count("the feature cache is full") == 1
    assert "more than processor.feature_cache_gb" in caplog.text
    assert full.run.manifest()["feature_cache"]["written"] == 0


def test_what_was_filled_ahead_is_what_training_looks_for(cached: Make) -> None:
    """Also where an earlier stage trained the encoder, under autocast, and in views."""
    first = cached("first", policy={"encoder": "full", "connector": "full", "llm": "frozen"}, feature_cache_gb=None)
    run(first)
    autocast = TrainerConfig(accelerator="cpu", precision="bf16-mixed")
    jobs = {
        "base": cached("base"),
        "chained": cached("chained", init_from=(first.run,)),
        "autocast": cached("autocast", init_from=(first.run,), trainer=autocast),
    }
    jobs["queries"] = with_parts(cached("queries", policy=QUERIES, allow_random_frozen=True), connector=QFORMER)
    jobs["queries, autocast"] = replace(jobs["queries"], run=cached("low").run, trainer=autocast)
    views = cached("views")
    jobs["views"] = replace(views, plan=replace(views.plan, tiling=DynamicTiles(max_tiles=4)))
    for name, job in jobs.items():
        filled = fill(job, console)
        assert filled.num_media == 20, name
        assert filled.num_encoded == filled.num_written > 0, name
        assert filled.num_hits == filled.num_media - filled.num_encoded
        assert fill(job, console).num_hits == filled.num_media
        run(job)
        assert counts(job)[0] > 0, name
        assert counts(job)[1] == 0, name


def test_filling_counts_what_cannot_be_read(cached: Make, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for file in rows.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "0.png").write_bytes(b"not a picture")
    filled = fill(cached("run", data=LlavaJsonConfig(path=str(folder / "rows.json"))), console)
    assert (filled.num_unreadable, filled.closed) == (1, "")


def test_a_stage_without_pictures_has_no_cache(cached: Make) -> None:
    job = cached("text")
    assert FeatureCache.of(replace(job, plan=replace(job.plan, inputs={}))) is None
    assert FeatureCache.of(replace(job, feature_cache_gb=None)) is None
