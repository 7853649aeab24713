"""W&B and TensorBoard on real runs of tiny parts, offline, read back from what they wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmexp.engine import Interrupted, StageJob, TensorBoardConfig, Tracking, WandbConfig, fit
from mmexp.engine.trackers import Identity, exit_code, new_tracking_id
from mmexp.engine.wandb_tracker import has_key
from mmexp.errors import DataError
from tests.engine.conftest import StoppedAt
from tests.engine.offline import OfflineRun

Make = Callable[..., StageJob]
RESULTS = {"heldout": {"vqa": {"exact_match": 0.5, "exact_match/color": 1.0, "num_samples": 3}}}


def tracked(job: StageJob, **settings: Any) -> StageJob:
    """The job with a W&B run, offline."""
    identity = Identity(run=job.run, id=f"{job.label}-1", group="sweep", job_type="align", name="connector=mlp2x",
                        tags=("tiny", "mlp2x"), config={"seed": 0, "overrides": ["connector=mlp2x"]})  # fmt: skip
    return replace(job, tracking=Tracking({"wandb": WandbConfig(offline=True, **settings)}, identity))


def train(job: StageJob) -> None:
    with job.tracking:
        fit(job, lambda table: None)


def write_predictions(folder: Path, count: int = 3) -> None:
    Image.new("RGB", (8, 6), "red").save(folder / "red.png")
    (folder / "predictions").mkdir()
    lines: list[Mapping[str, Any]] = [
        {"id": f"q{index}", "prompt": "What?", "prediction": "red", "target": "blue", "score": 0.0, "image": "red.png",
         "boxes": {"target": [0.0, 0.0, 0.5, 0.5]}}
        for index in range(count)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "predictions" / "heldout_vqa.jsonl").write_text(text)


@pytest.fixture(autouse=True)
def nothing_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B prepares artifacts in a folder of the user's."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("with_weights", [False, True])
def test_a_run_is_in_wandb_from_its_settings_to_its_answers(make_job: Make, with_weights: bool, capsys: Any) -> None:
    job = tracked(make_job(), num_samples=2, log_weights=with_weights)
    write_predictions(job.run.path)
    with job.tracking as tracking:
        fit(job, lambda table: None)
        tracking.log_results(RESULTS, job.run.path, 6)
        tracking.log_weights(job.run.weights)
    found = OfflineRun(job.run.path)
    assert (found.run.run_id, found.run.run_group, found.run.job_type) == ("run-1", "sweep", "align")
    assert found.run.display_name == "connector=mlp2x"
    assert set(found.run.tags) == {"tiny", "mlp2x"}
    assert found.config["overrides"] == ["connector=mlp2x"]
    assert found.arguments == ["connector=mlp2x"], "the arguments of this process could hold a secret"
    assert found.config["derived"] == job.run.manifest()["derived"]
    lines = [json.loads(line) for line in (job.run.path / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in found.history if "train/loss" in row]
    assert [row["trainer/global_step"] for row in logged] == [line["step"] for line in lines]
    for name in ("train/loss", "grad_norm/connector", "grad_norm/llm"):
        assert [row[name] for row in logged] == pytest.approx([line[name] for line in lines], rel=1e-4)
    figures = {f"val/heldout/vqa/{key}": value for key, value in RESULTS["heldout"]["vqa"].items()}
    assert figures.items() <= found.summary.items()
    assert any(figures.items() <= row.items() for row in found.history)
    table = found.table("samples/heldout/vqa")
    assert table["columns"] == ["id", "image", "prompt", "prediction", "target", "score"]
    assert [row[0] for row in table["data"]] == ["q0", "q1"]
    assert table["data"][0][2:] == ["What?", "red", "blue", 0.0]
    picture = table["data"][0][1]
    with Image.open(picture["path"]) as image:
        assert (image.size, image.getpixel((0, 0))) == ((8, 6), (255, 0, 0))
    assert list(picture["boxes"]) == ["target"]
    assert found.exit_code == 0
    weights = [entry for entry in found.artifacts if entry.type == "model"]
    assert [{item.path for item in entry.manifest.contents} for entry in weights] == (
        [{"connector.safetensors", "llm.safetensors"}] if with_weights else []
    )
    assert f"wandb sync {found.folder}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (DataError("x"), 2), (ValueError("x"), 1), (Interrupted(15, 3), 143), (KeyboardInterrupt(), 130),
     (SystemExit(7), 7), (SystemExit(None), 0), (SystemExit("words"), 1)],
)  # fmt: skip
def test_trackers_get_the_exit_code_of_the_command(error: BaseException | None, code: int) -> None:
    assert exit_code(error) == code


def test_a_failed_run_has_failed_in_wandb_too(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: Any, batch: Any, index: int) -> Any:
        raise ValueError("broken")

    monkeypatch.setattr("mmexp.engine.module.TrainingModule.training_step", breaks)
    job = tracked(make_job())
    with pytest.raises(ValueError, match="broken"):
        train(job)
    assert OfflineRun(job.run.path).exit_code == 1


def test_a_stopped_run_continues_as_the_same_one_with_its_whole_history(make_job: Make, stopped_at: StoppedAt) -> None:
    whole, first = tracked(make_job("whole")), tracked(make_job())
    train(whole)
    with stopped_at(3):
        train(first)
    stopped = OfflineRun(first.run.path)
    assert stopped.exit_code == 143
    assert [row["trainer/global_step"] for row in stopped.history] == [1, 2, 3, 4]
    (first.run.path / "metrics.jsonl").open("a").write('{"step": 5, "train/loss": 99.0}\n{"step')  # then a kill
    second = tracked(make_job())
    train(second)
    continued, expected = OfflineRun(second.run.path), OfflineRun(whole.run.path)
    assert continued.folder != stopped.folder
    assert continued.run.run_id == stopped.run.run_id
    assert [row["trainer/global_step"] for row in continued.history] == [1, 2, 3, 4, 5, 6]
    losses = [[row["train/loss"] for row in run.history] for run in (continued, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert continued.exit_code == 0


def test_one_that_breaks_is_reported_once_and_ended_all_the_same(make_job: Make, caplog: Any) -> None:
    class Breaks:
        def __init__(self) -> None:
            self.asked: list[str] = []

        def __getattr__(self, name: str) -> Any:
            def call(*args: Any) -> None:
                self.asked.append(name)
                if name == "log":
                    raise OSError("the server is gone")

            return call

    class Refuses:
        def build(self, identity: Identity) -> Any:
            raise ValueError("not today")

    class Given:
        def build(self, identity: Identity) -> Any:
            return tracker

    tracker, job = Breaks(), make_job()
    identity = Identity(run=job.run, id="one", group="g", job_type="j", name="n")
    job = replace(job, tracking=Tracking({"given": Given(), "refuses": Refuses()}, identity))
    train(job)
    assert tracker.asked == ["update_config", "log", "finish"]
    assert [
        r.getMessage() for r in caplog.records if "of this run" in r.getMessage() or "is off" in r.getMessage()
    ] == [
        "refuses is off for this run: not today",
        "given gets nothing further of this run: the server is gone",
    ]
    assert len((job.run.path / "metrics.jsonl").read_text().splitlines()) == 6


def test_tensorboard_has_the_curves(make_job: Make) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = make_job()
    identity = Identity(run=job.run, id="one", group="g", job_type="j", name="n")
    job = replace(job, tracking=Tracking({"tensorboard": TensorBoardConfig()}, identity))
    with job.tracking as tracking:
        fit(job, lambda table: None)
        tracking.log_results(RESULTS, job.run.path, 6)
    found = EventAccumulator(str(job.run.path / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [(event.step, event.value) for event in found.Scalars("val/heldout/vqa/exact_match")] == [(6, 0.5)]


def test_ids_are_new_and_made_of_what_trackers_take() -> None:
    one, other = new_tracking_id("pipeline-1/2 ?"), new_tracking_id("pipeline-1/2 ?")
    assert one != other
    assert one.startswith("pipeline-1-2---")
    assert len(new_tracking_id("x" * 200)) <= 64


def test_a_key_is_found_where_wandb_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_key()
    (tmp_path / "netrc").write_text("machine wandb.lab.example login user password 0123\n")
    assert not has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab.example")
    assert has_key()
    monkeypatch.delenv("WANDB_BASE_URL")
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert has_key()
