"""BLIP-2's two stages as a user runs them: train, evaluate, continue, and hand the Q-Former on."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmexp.config import Invocation, compose
from mmexp.engine import Interrupted
from mmexp.engine.module import TrainingModule
from mmexp.errors import ConfigError
from tests.assets.make_bert import make_bert, make_tokenizer

SIZES = ["num_queries=4", "width=16", "num_layers=2", "num_heads=2", "ffn_width=24"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures with a caption each, a BERT tokenizer and a BERT."""
    root = tmp_path_factory.mktemp("blip2")
    rows = []
    for index in range(12):
        Image.new("RGB", (30, 30), (index * 20, 90, 255 - index * 20)).save(root / f"{index}.png")
        said = f"the {('red', 'blue', 'green')[index % 3]} circle number {index}"
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": said}]
        rows.append({"id": f"row{index}", "image": f"{index}.png", "conversations": turns})
    (root / "rows.json").write_text(json.dumps(rows))
    make_tokenizer(root / "bert")
    make_bert(root / "bert", width=16, num_layers=2, num_heads=2, ffn_width=24, vocab_size=89)
    return root


def stage_one(folder: Path, *further: str) -> Invocation:
    qformer = [f"connector.{size}" for size in SIZES]
    return compose("train", [
        "stage=blip2/represent", "scale=paper", "encoder=tiny",
        "stage.policy.encoder=frozen", *qformer, "connector.vocab_size=90",
        f"connector.init={folder}/bert", f"llm.tokenizer={folder}/bert", "data=llava_json",
        f"data.path={folder}/rows.json", "evaluation=retrieval",
        f"evaluation.retrieval.splits.test.path={folder}/rows.json", "trainer=smoke",
        "logger=none", f"paths.outputs={folder}/outputs", f"paths.cache={folder}/cache",
        "stage.batch_size=8", "stage.micro_batch_size=4", "stage.warmup_ratio=0", "trainer.checkpoint_every_n_steps=1",
        "name=blip2", *further,
    ])  # fmt: skip


def stage_two(folder: Path, *further: str) -> Invocation:
    return compose("train", [
        "stage=align", "scale=paper", "encoder=tiny", "connector=qformer", *(f"connector.{size}" for size in SIZES),
        "llm=tiny", "template=blip2_align", "data=llava_json", f"data.path={folder}/rows.json", "trainer=smoke",
        "logger=none", f"paths.outputs={folder}/outputs", f"paths.cache={folder}/cache", "stage.batch_size=4",
        "stage.micro_batch_size=4", "stage.warmup_ratio=0", "name=blip2", *further,
    ])  # fmt: skip


def run_of(folder: Path, stage: str, run_id: str) -> Path:
    return folder / "outputs" / "blip2" / stage / run_id


@pytest.fixture(scope="module")
def first(folder: Path) -> Path:
    """A finished first stage."""
    from mmexp.train import train

    train(stage_one(folder, "run_id=one"))
    return run_of(folder, "blip2_represent", "one")


def test_the_first_stage_trains_and_is_scored(first: Path) -> None:
    records = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    for name in ("loss_itc", "loss_itm", "loss_itg", "temp", "itc_accuracy", "itm_accuracy"):
        assert all(f"train/{name}" in record for record in records), name
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert {entry["part"] for entry in manifest["weights"]} == {"connector", "objective"}
    trained = {part["name"]: part["num_trained"] for part in manifest["parts"]}
    assert trained["encoder"] == trained["llm"] == 0
    figures = json.loads((first / "results.json").read_text())["test"]["retrieval"]
    assert next(iter(figures)) == "text_recall_1"
    assert figures["num_samples"] == 12
    assert figures["chance"] == pytest.approx(1 / 12, abs=1e-5)
    assert figures["text_recall_1"] <= figures["text_recall_5"] <= figures["text_recall_10"]
    lines = [json.loads(line) for line in (first / "predictions" / "test_retrieval.jsonl").read_text().splitlines()]
    assert all(line["prediction"].startswith("the ") for line in lines)


def test_a_finished_run_is_scored_again_the_same(first: Path, folder: Path) -> None:
    from mmexp.evaluate import body

    before = json.loads((first / "results.json").read_text())
    body(compose("evaluate", [f"run={first}"]))
    assert json.loads((first / "results.json").read_text()) == before


def test_retrieval_between_steps_changes_nothing(first: Path, folder: Path) -> None:
    from mmexp.train import train

    train(stage_one(folder, "run_id=watched", "trainer.evaluate_every_n_steps=1", "trainer.evaluate_samples=6"))
    watched = run_of(folder, "blip2_represent", "watched")
    records = [json.loads(line) for line in (watched / "metrics.jsonl").read_text().splitlines()]
    found = [record for record in records if "val/test/retrieval/text_recall_1" in record]
    assert [record["step"] for record in found] == [1, 2]
    assert all(record["val/test/retrieval/num_samples"] == 6 for record in found)
    losses = [[json.loads(line).get("train/loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
              for run in (first, watched)]  # fmt: skip
    assert [loss for loss in losses[1] if loss is not None] == losses[0]
    for name in ("connector", "objective"):
        mine, theirs = (load_file(run / "weights" / f"{name}.safetensors") for run in (watched, first))
        assert all(torch.equal(mine[key], tensor) for key, tensor in theirs.items())


def test_an_interrupted_first_stage_goes_on_as_if_nothing_had_been(
    first: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmexp.train import train

    step = TrainingModule.training_step

    def stopped(self: Any, batch: Any, index: int) -> Any:
        if self.global_step == 1:
            raise Interrupted(15, 1)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", stopped)
        with pytest.raises(Interrupted):
            train(stage_one(folder, "run_id=two"))
    second = run_of(folder, "blip2_represent", "two")
    assert not (second / "results.json").exists()
    train(stage_one(folder, "run_id=two"))
    for part in ("connector", "objective"):
        whole = load_file(first / "weights" / f"{part}.safetensors")
        parted = load_file(second / "weights" / f"{part}.safetensors")
        assert whole.keys() == parted.keys()
        assert all(torch.equal(tensor, parted[name]) for name, tensor in whole.items())


def test_the_second_stage_takes_what_it_needs_and_lists_the_rest(
    first: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mmexp.assemble import experiment
    from mmexp.engine import fit

    exp = experiment(stage_two(folder, "run_id=three", f"stage.init_from={first}"))
    given = load_file(first / "weights" / "connector.safetensors")
    module = TrainingModule(*_parts(exp), init_from=exp.job(exp.open_run()).init_from)
    with caplog.at_level(logging.INFO):
        module.configure_model()
    own = module.parts()["connector"].state_dict()
    taken = {name for name in given if name in own}
    assert taken == {name for name in own if name.startswith("qformer.")}
    assert all(torch.equal(own[name], given[name]) for name in taken)
    left = sorted(given.keys() - taken)
    (line,) = [record.getMessage() for record in caplog.records if "tensors stay behind" in record.getMessage()]
    assert line == f"connector: {len(left)} of {len(given)} tensors stay behind: {', '.join(left)}"
    assert "qformer.bert.encoder.layer.0.intermediate.dense.weight" in left
    assert not any("_query" in name or "attention" in name for name in left)
    done = fit(exp.job(exp.open_run()), lambda table: None)
    assert done.model is not None
    handed = load_file(run_of(folder, "align", "three") / "weights" / "connector.safetensors")
    assert handed.keys() == own.keys()


@pytest.mark.slow
def test_the_exported_queries_start_a_stage(first: Path, folder: Path) -> None:
    """As a part of the shapes world ships: half precision, without text, and a start like any other."""
    from mmexp.assemble import experiment

    root = Path(__file__).parents[1]
    line = [sys.executable, "experiments/export_parts.py", str(first), str(folder / "part")]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(line, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    exp = experiment(stage_two(folder, "run_id=four", f"stage.init_from={folder}/part"))
    module = TrainingModule(*_parts(exp), init_from=exp.job(exp.open_run()).init_from)
    module.configure_model()
    own = module.parts()["connector"].state_dict()
    given = load_file(first / "weights" / "connector.safetensors")
    written = load_file(folder / "part" / "weights" / "connector.safetensors")
    assert written.keys() == {name for name in own if name.startswith("qformer.")} == module.changed["connector"]
    assert all(tensor.dtype == torch.float16 for tensor in written.values())
    assert all(torch.equal(own[name], given[name].half().float()) for name in written)


def test_the_first_stage_becomes_transformers_model_of_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForZeroShotImageClassification

    from mmexp.export import body
    from mmexp.train import train

    eva = ["from_scratch=true", "width=24", "num_blocks=2", "num_heads=2", "mlp_width=36", "image_size_px=28"]
    parts = ["encoder=eva_g", *(f"encoder.{size}" for size in eva), "stage.allow_random_frozen=true"]
    train(stage_one(folder, *parts, "stage.policy.encoder={vit: frozen, ln_vision: full}", "run_id=scores"))
    run, out = run_of(folder, "blip2_represent", "scores"), folder / "exported"
    body(compose("export", [f"run={run}", f"out={out}"]))
    assert "5 pictures with a text: similarities differ by" in capsys.readouterr().out.replace("\n", " ")
    model = AutoModelForZeroShotImageClassification.from_pretrained(out)
    trained = load_file(run / "weights" / "objective.safetensors")
    assert torch.equal(model.itm_head.weight, trained["itm_head.weight"])
    assert torch.equal(model.vision_projection.bias, trained["vision_proj.bias"])
    norm = load_file(run / "weights" / "encoder.safetensors")["ln_vision.weight"]
    assert torch.equal(model.vision_model.post_layernorm.weight, norm)


def test_a_twin_may_start_from_a_part() -> None:
    twin = compose("train", ["recipe=minigpt4", "scale=shapes"]).cfg
    assert twin.stage.init_from == f"{twin.paths.parts}/qformer"
    assert twin.stage.policy == {"encoder": "frozen", "connector": {"qformer": "frozen", "proj": "full"},
                                 "llm": "frozen"}  # fmt: skip
    assert compose("train", ["recipe=llava15", "scale=shapes"]).cfg.stage.init_from is None
    assert compose("train", ["recipe=minigpt4", "stage=minigpt4/finetune", "scale=shapes"]).cfg.stage.init_from is None


def _parts(exp: Any) -> tuple[Any, ...]:
    from mmexp.engine import Recipe

    job = exp.job(exp.open_run())
    recipe = Recipe(policy=job.policy, lr=job.lr, num_steps=2)
    return exp.plan, job.objective, job.optim, recipe


def test_asking_a_model_without_an_llm_is_one_clear_mistake(first: Path) -> None:
    from mmexp.assemble import experiment_of_run, finished_run
    from mmexp.engine.predict import Generator
    from mmexp.llm import Sampling

    registered = compose("evaluate", [f"run={first}"]).registered
    exp = experiment_of_run(str(first), registered, skip=("data", "optim", "trainer", "logger"))
    generator = exp.load_generator(finished_run(str(first), "run"))
    sample = exp.checked.parts["evaluation"]["retrieval"].splits["test"].build()[0]
    with pytest.raises(ConfigError, match="this model has no LLM"):
        generator.predict([replace(sample, turns=sample.turns[:1])], Sampling())
    with pytest.raises(ConfigError, match="not learned to compare"):
        Generator(generator.model, exp.plan).matcher()
