"""Evaluations between steps: they leave no trace in training, none is lost or written twice, and trackers have them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mmexp.data import LlavaJsonConfig
from mmexp.engine import Interrupted, StageJob, TensorBoardConfig, Tracking, TrainerConfig, WandbConfig, fit
from mmexp.engine.checkpoint import newest
from mmexp.engine.module import TrainingModule
from mmexp.engine.predict import Generator
from mmexp.engine.trackers import Identity
from mmexp.engine.validation import validate_at_the_end
from mmexp.errors import ConfigError
from mmexp.evaluation import BenchmarkConfig, VqaConfig
from mmexp.inspection import draw_attention
from mmexp.tuning import LoraSettings
from tests.engine.offline import OfflineRun

Make = Callable[..., StageJob]
TIMED = ("time/", "data/tokens_per_s", "data/samples_per_s", "data/media_per_s", "memory/")
KEY = "val/heldout/vqa/exact_match"


@pytest.fixture
def evaluated(make_job: Make, rows: Path) -> Callable[..., StageJob]:
    """A stage with dropout, two micro-batches a step, and evaluations on 5 samples."""

    def make(name: str, every: int | None = 2, cap: int | None = 5, **changes: Any) -> StageJob:
        trainer = TrainerConfig(accelerator="cpu", log_every_n_steps=1, checkpoint_every_n_steps=3,
                                evaluate_every_n_steps=every, evaluate_samples=cap)  # fmt: skip
        settings: dict[str, Any] = {
            "trainer": trainer,
            "policy": {"encoder": "frozen", "connector": "full", "llm": "lora"},
            "lora": LoraSettings(rank=2, alpha=4, dropout=0.5),
            "benchmarks": {
                "vqa": VqaConfig(splits={"heldout": LlavaJsonConfig(path=str(rows))}, batch_size=2, max_new_tokens=4)
            },
        }
        return make_job(name, **settings | changes)

    return make


def run(job: StageJob) -> TrainingModule:
    with job.tracking:
        return fit(job, lambda table: None)


def records(job: StageJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.run.path / "metrics.jsonl").read_text().splitlines()]


def trained(job: StageJob) -> list[dict[str, float]]:
    """What was logged of training and does not depend on the clock."""
    rows = [row for row in records(job) if "train/loss" in row]
    return [{key: value for key, value in row.items() if not key.startswith(TIMED)} for row in rows]


def validated(job: StageJob) -> list[dict[str, float]]:
    return [row for row in records(job) if KEY in row]


def state(job: StageJob) -> dict[str, Any]:
    file = newest(job.run.checkpoints)
    assert file is not None
    return torch.load(file, weights_only=True)


def assert_same_training(one: StageJob, other: StageJob) -> None:
    assert trained(one) == trained(other)
    files = [file.relative_to(one.run.weights) for file in one.run.weights.rglob("*.safetensors")]
    assert files
    for name in files:
        mine, theirs = load_file(one.run.weights / name), load_file(other.run.weights / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    mine, theirs = state(one), state(other)
    assert mine["MultimodalDataModule"] == theirs["MultimodalDataModule"]
    assert mine["loops"] == theirs["loops"]
    for key, moments in theirs["optimizer_states"][0]["state"].items():
        found = mine["optimizer_states"][0]["state"][key]
        assert all(torch.equal(found[name], value) for name, value in moments.items())


SETUPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"trainer": {"precision": "bf16-mixed"}},
    "kept_features": {"feature_cache_gb": 1.0},
    "compiled": {"trainer": {"compile": ("llm", "connector")}},
}


@pytest.mark.parametrize(
    "setup", ["plain", "kept_features", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bf16", "compiled"))]
)
def test_training_is_the_same_to_the_bit(
    evaluated: Make, setup: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain_compile(self, backend="eager"))
    jobs = []
    for name, every in (("unwatched", None), ("watched", 2)):
        job, changes = evaluated(name, every=every), dict(SETUPS[setup])
        trainer = replace(job.trainer, **changes.pop("trainer", {}))
        jobs.append(replace(job, trainer=trainer, cache=tmp_path / f"cache_{name}", **changes))
        run(jobs[-1])
    unwatched, watched = jobs
    assert [row["step"] for row in validated(watched)] == [2, 4], "the last step is left to the end"
    assert validated(unwatched) == []
    assert_same_training(watched, unwatched)
    assert watched.run.manifest().get("feature_cache") == unwatched.run.manifest().get("feature_cache")


def test_figures_are_those_of_the_weights_at_that_step(evaluated: Make) -> None:
    job = evaluated("watched", max_steps=5)
    run(job)
    assert [row["step"] for row in validated(job)] == [2, 4]
    assert list(validated(job)[0]) == ["step", KEY, "val/heldout/vqa/num_samples"]
    assert validated(job)[0]["val/heldout/vqa/num_samples"] == 5
    lines = _predictions(job, 4)
    assert validated(job)[1][KEY] == pytest.approx(sum(line["score"] for line in lines) / 5, rel=1e-5)
    assert "blind" not in lines[0]
    ended = evaluated("ended", max_steps=5, trainer=replace(job.trainer, max_steps=None, evaluate_every_n_steps=4))
    module = run(ended)
    generator = Generator(module.model, ended.plan, module.objective)  # type: ignore[arg-type]
    for _ in range(2):  # the second time it stands there
        validate_at_the_end(ended, generator, 5)
    assert [row["step"] for row in validated(ended)] == [4, 5]
    assert validated(ended)[0] == validated(job)[1]
    answers = generator.predictor(ended.benchmarks["vqa"])
    assert callable(answers)
    asked = [replace(sample, turns=sample.turns[:-1]) for sample in _samples(ended)]
    assert [line["prediction"] for line in _predictions(ended, 5)] == answers(asked)


def _samples(job: StageJob) -> list[Any]:
    """Those that a cap of 5 leaves of 21."""
    dataset = job.benchmarks["vqa"].splits["heldout"].build()
    return [dataset[index] for index in (0, 4, 8, 12, 16)]


def _predictions(job: StageJob, step: int) -> list[dict[str, Any]]:
    file = job.run.path / "validation" / f"step_{step:08d}" / "predictions" / "heldout_vqa.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_same_samples_are_asked_every_time_and_answers_change(evaluated: Make) -> None:
    job = evaluated("run", lr=3e-2, max_steps=8, policy={"encoder": "frozen", "connector": "full", "llm": "full"})
    run(job)
    asked = [[line["id"] for line in _predictions(job, step)] for step in (2, 4, 6)]
    assert asked[0] == ["r0", "r4", "r8", "r12", "r16"]
    assert all(ids == asked[0] for ids in asked)
    answers = [[line["prediction"] for line in _predictions(job, step)] for step in (2, 4, 6)]
    assert any(said != answers[0] for said in answers[1:])


def test_the_model_answers_in_eval_mode_and_trains_on_as_before(
    evaluated: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    plain_predict, plain_step = Generator.predict, TrainingModule.training_step

    def predict(self: Any, samples: Any, sampling: Any) -> Any:
        seen.append((any(module.training for module in self.model.modules()), torch.is_grad_enabled()))
        return plain_predict(self, samples, sampling)

    modes: list[dict[str, bool]] = []

    def step(self: Any, batch: Any, index: int) -> Any:
        modes.append({name: module.training for name, module in self.named_modules()})
        return plain_step(self, batch, index)

    monkeypatch.setattr(Generator, "predict", predict)
    monkeypatch.setattr(TrainingModule, "training_step", step)
    run(evaluated("run"))
    assert seen
    assert not any(training for training, _ in seen)
    assert all(mode == modes[0] for mode in modes)
    assert any(modes[0].values())
    assert not modes[0]["model.inputs.image.encoder"]


def test_its_time_is_not_that_of_training(evaluated: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    for place in ("callbacks", "validation"):
        monkeypatch.setattr(f"mmexp.engine.{place}.time", clock)
    for owner, name, seconds in ((Generator, "predict", 10.0), (TrainingModule, "training_step", 1.0)):
        monkeypatch.setattr(owner, name, _taking(getattr(owner, name), seconds, now))
    job = evaluated("run")
    run(job)
    assert [row["time/step_s"] for row in records(job) if "time/step_s" in row] == [2.0] * 6, "two micro-batches each"
    assert job.run.manifest()["validation_s"] == 60.0, "two evaluations of three batches"


def _taking(call: Any, seconds: float, now: list[float]) -> Any:
    """The method, and a clock that it moves."""

    def taking(*args: Any) -> Any:
        now[0] += seconds
        return call(*args)

    return taking


@pytest.mark.parametrize("at", [1, 5])
def test_one_that_a_signal_stops_is_made_up_for(evaluated: Make, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    whole, broken = evaluated("whole"), evaluated("broken")
    run(whole)
    plain, calls = Generator.predict, []

    def interrupted(self: Any, samples: Any, sampling: Any) -> Any:
        calls.append(len(samples))
        if len(calls) == at:  # of three batches each
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, samples, sampling)

    with monkeypatch.context() as patched, pytest.raises(Interrupted) as stop:
        patched.setattr(Generator, "predict", interrupted)
        run(broken)
    step = 2 * (1 + (at - 1) // 3)
    assert stop.value.step == step
    assert len(calls) == at, "it stops after the batch in hand"
    assert [row["step"] for row in validated(broken)] == list(range(2, step, 2))
    run(broken)
    assert validated(broken) == validated(whole)
    assert_same_training(broken, whole)


def test_one_that_stands_in_the_record_is_not_made_again(evaluated: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = evaluated("whole"), evaluated("broken")
    run(whole)
    plain = TrainingModule.training_step

    def dies(self: Any, batch: Any, index: int) -> Any:
        if self.trainer.global_step == 5:  # the checkpoint is of step 3, evaluations of 2 and 4 are written
            raise OSError("the machine is gone")
        return plain(self, batch, index)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="gone"):
        patched.setattr(TrainingModule, "training_step", dies)
        run(broken)
    assert [row["step"] for row in validated(broken)] == [2, 4]
    run(broken)
    assert validated(broken) == validated(whole)
    assert_same_training(broken, whole)


def test_wandb_has_curves_and_a_table_at_every_evaluation(
    evaluated: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    job = evaluated("run")
    identity = Identity(run=job.run, id="one", group="g", job_type="j", name="n")
    job = replace(job, tracking=Tracking({"wandb": WandbConfig(offline=True, num_samples=2)}, identity))
    run(job)
    found = OfflineRun(job.run.path)
    curve = {row["trainer/global_step"]: row[KEY] for row in found.history if KEY in row}
    assert curve == {row["step"]: pytest.approx(row[KEY], rel=1e-5) for row in validated(job)}
    assert list(curve) == [2, 4]
    tables = [row for row in found.history if any(key.startswith("samples/heldout/vqa") for key in row)]
    assert [row["trainer/global_step"] for row in tables] == [2, 4]
    table = found.table("samples/heldout/vqa")
    assert table["columns"] == ["id", "image", "prompt", "prediction", "target", "score"]
    assert [row[0] for row in table["data"]] == ["r0", "r4"]
    first = _predictions(job, 2)[0]
    assert table["data"][0][2:] == [first["prompt"], first["prediction"], first["target"], first["score"]]
    assert Path(table["data"][0][1]["path"]).is_file()


def test_attention_of_the_same_samples_is_drawn_without_a_trace(
    evaluated: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    plain, drawn = evaluated("plain", every=None), evaluated("drawn")
    identity = Identity(run=drawn.run, id="one", group="g", job_type="j", name="n")
    trackers: Any = {"wandb": WandbConfig(offline=True, num_samples=0), "tensorboard": TensorBoardConfig()}
    drawn = replace(drawn, trainer=replace(drawn.trainer, evaluate_attention=2), draw=draw_attention,
                    tracking=Tracking(trackers, identity))  # fmt: skip
    run(plain)
    run(drawn)
    assert_same_training(drawn, plain)
    for step in (2, 4):
        folder = drawn.run.path / "validation" / f"step_{step:08d}" / "attention"
        assert sorted(file.name for file in folder.iterdir()) == ["r0_tokens.png", "r8_tokens.png"], "r4 has no picture"
        with Image.open(folder / "r0_tokens.png") as picture:
            assert len(picture.convert("RGB").getcolors(2**20) or []) > 20, "a picture, a map and words"
    logged = [row for row in OfflineRun(drawn.run.path).history if any(key.startswith("attention/") for key in row)]
    assert [row["trainer/global_step"] for row in logged] == [2, 4]
    for row in logged:
        paths = {key for key in row if key.startswith("attention/") and key.endswith("/path")}
        assert paths == {"attention/r0_tokens/path", "attention/r8_tokens/path"}
    found = EventAccumulator(str(drawn.run.path / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Images("attention/r0_tokens")] == [2, 4]


@pytest.mark.parametrize("name", ["evaluate_every_n_steps", "evaluate_samples"])
@pytest.mark.parametrize("value", [0, -3])
def test_a_number_that_is_none_is_refused(name: str, value: int) -> None:
    changed: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=rf"trainer\.{name}: {value}(.*\n)*.*at least 1, or null"):
        TrainerConfig(**changed)


def test_a_strategy_that_cannot_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.evaluate_attention: 2 with fsdp"):
        TrainerConfig(strategy="fsdp", evaluate_every_n_steps=5, evaluate_attention=2)
    with pytest.raises(ConfigError, match=r"trainer\.evaluate_attention: -1"):
        TrainerConfig(evaluate_attention=-1)
    with pytest.raises(ConfigError, match=r"trainer\.evaluate_every_n_steps: 5 with deepspeed_stage_3"):
        TrainerConfig(strategy="deepspeed_stage_3", evaluate_every_n_steps=5)


def test_without_a_benchmark_of_its_own_a_stage_says_so_and_trains(evaluated: Make, caplog: Any) -> None:
    none: dict[str, BenchmarkConfig] = {}
    job = evaluated("run", benchmarks=none)
    run(job)
    assert validated(job) == []
    assert "trainer.evaluate_every_n_steps has no effect" in caplog.text
