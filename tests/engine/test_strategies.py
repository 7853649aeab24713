"""Two processes on the CPU learn what one learns, however they share the work, and write the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmexp.engine import StageJob, TrainerConfig, fit
from mmexp.engine.blocks import blocks_of, set_up_blocks
from mmexp.engine.checkpoint import newest
from mmexp.engine.strategy import build_strategy
from mmexp.errors import ConfigError
from tests.faults.runs import Run, same_weights, write_rows

Make = Callable[..., StageJob]
STEP = ("stage.batch_size=4", "trainer.max_steps=8", "trainer.checkpoint_every_n_steps=4")
POLICIES = {
    "llm_alone": (
        "stage.policy.connector=frozen",
        "stage.allow_random_frozen=true",
    ),  # a batch without pictures has no gradient for any branch
    "lora": ("stage.policy.llm=lora", "stage.lora.dropout=0"),  # its masks differ between processes
    "all": ("stage.policy.encoder=full", "trainer.gradient_checkpointing=[llm,encoder]"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("strategies")
    write_rows(made)
    return made


def state(run: Run) -> dict[str, Any]:
    file = newest(run.path / "checkpoints")
    assert file is not None
    return torch.load(file, weights_only=True)


def part_norms(run: Run) -> list[float]:
    """Gradient norms of parts, of the steps in which there are any."""
    return [value for row in run.records() for key, value in row.items() if key.startswith("grad_norm/")]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy", POLICIES)
def test_two_processes_equal_one(folder: Path, policy: str) -> None:
    one = Run(folder, f"{policy}_one", *STEP, *POLICIES[policy], "stage.micro_batch_size=4")
    one.finish()
    for strategy, micro in (("ddp", 2), ("fsdp", 1), ("deepspeed_stage_2", 2), ("deepspeed_stage_3", 1)):
        two = ("trainer.devices=2", f"trainer.strategy={strategy}", f"stage.micro_batch_size={micro}")
        run = Run(folder, f"{policy}_{strategy}", *STEP, *POLICIES[policy], *two)
        run.finish()
        assert run.losses() == pytest.approx(one.losses(), abs=2e-5)  # six digits are logged
        mine, theirs = part_norms(run), part_norms(one)
        assert theirs[0], "one process has norms of its parts"
        assert mine == ([] if strategy.startswith("deepspeed") else pytest.approx(theirs, rel=1e-3, abs=1e-5))
        mine, theirs = state(run), state(one)
        shapes = [{name: tensor.shape for name, tensor in s["state_dict"].items()} for s in (mine, theirs)]
        assert shapes[0] == shapes[1]
        for key, value in theirs["optimizer_states"][0]["state"].items():
            assert mine["optimizer_states"][0]["state"][key]["exp_avg"].shape == value["exp_avg"].shape
        for file in (one.path / "weights").rglob("*.safetensors"):
            expected = load_file(file)
            found = load_file(run.path / file.relative_to(one.path))
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("policy", ["lora", "all"])
def test_matrices_that_are_fetched_in_bf16_learn_what_autocast_learns(folder: Path, policy: str) -> None:
    two = ("trainer.precision=bf16-mixed", "trainer.devices=2", "stage.micro_batch_size=2", *POLICIES[policy])
    whole, shares = (
        Run(folder, f"bf16_{policy}_{name}", *STEP, *two, f"trainer.strategy={name}") for name in ("ddp", "fsdp")
    )
    whole.finish()
    shares.finish()
    assert shares.losses() == pytest.approx(whole.losses(), abs=5e-4)  # sums of bf16 products in another order


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_in_bf16_continues_to_the_bit_after_a_kill(folder: Path, stage: int) -> None:
    how = (
        "trainer.precision=bf16-mixed", "trainer.devices=2", f"trainer.strategy=deepspeed_stage_{stage}",
        "stage.micro_batch_size=1", "trainer.checkpoint_every_n_steps=3", "trainer.keep_checkpoints=5",
    )  # fmt: skip
    whole, killed = (Run(folder, f"zero{stage}_{name}", *STEP, *how) for name in ("whole", "killed"))
    whole.finish()
    killed.start()
    killed.wait_for(lambda: bool(killed.checkpoints()) and len(killed.losses()) >= 5)
    killed.kill()
    killed.finish()
    assert killed.manifest()["resumed_from"] == "step_00000003.ckpt"
    assert killed.losses() == whole.losses()
    assert same_weights(killed, whole)
    mine, theirs = state(killed)["optimizer_states"][0], state(whole)["optimizer_states"][0]
    assert mine["param_groups"] == theirs["param_groups"]
    for number, values in theirs["state"].items():
        assert all(torch.equal(mine["state"][number][name], value) for name, value in values.items())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_fill_one_feature_cache_and_learn_as_without(folder: Path, tmp_path: Path) -> None:
    two = (*STEP, "trainer.devices=2", "trainer.strategy=ddp", "stage.micro_batch_size=2")
    kept = ("processor.feature_cache=read_write", f"paths.cache={tmp_path}")
    runs = [Run(folder, "no_cache", *two), Run(folder, "cold", *two, *kept), Run(folder, "warm", *two, *kept)]
    for run in runs:
        run.finish()
    counts = [json.loads((run.path / "manifest.json").read_text())["feature_cache"] for run in runs[1:]]
    assert len(list(tmp_path.glob("features/*/*.safetensors"))) == 2, "each process has written"
    assert counts[0]["written"] == counts[1]["hits"] == counts[0]["hits"] + counts[0]["misses"] > 0
    assert counts[1]["misses"] == 0
    for run in runs[1:]:
        assert run.losses() == runs[0].losses()
        for file in (runs[0].path / "weights").glob("*.safetensors"):
            assert file.read_bytes() == (run.path / "weights" / file.name).read_bytes()


def test_recomputed_and_compiled_blocks_change_neither_numbers_nor_names(make_job: Make) -> None:
    files = {}
    for name, settings in {
        "plain": {},
        "recomputed": {"gradient_checkpointing": ("llm", "encoder", "connector")},
    }.items():
        trainer = TrainerConfig(accelerator="cpu", log_every_n_steps=1, checkpoint_every_n_steps=2, **settings)
        job = make_job(name, trainer=trainer, policy={"encoder": "full", "connector": "full", "llm": "full"})
        fit(job, lambda table: None)
        files[name] = {file.name: file.read_bytes() for file in job.run.weights.glob("*.safetensors")}
        assert newest(job.run.checkpoints) is not None
    assert files["plain"] == files["recomputed"]


def test_a_compiled_part_keeps_the_names_of_its_tensors(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    model = make_job().plan.build()
    names = list(model.state_dict())
    set_up_blocks(model.parts(), [], ["llm", "connector"])
    assert list(model.state_dict()) == names
    assert compiled == [*blocks_of(model.parts()["llm"]), model.parts()["connector"]]


def test_blocks_are_those_that_repeat(make_job: Make) -> None:
    parts = make_job().plan.build().parts()
    assert [type(block).__name__ for block in blocks_of(parts["llm"])] == ["LlamaDecoderLayer", "_LastLlama"]
    assert len(blocks_of(parts["llm"])) == 2
    nested = nn.ModuleList([nn.Sequential(nn.ModuleList([nn.Linear(1, 1)] * 3)) for _ in range(2)])
    assert blocks_of(nn.Sequential(nested)) == list(nested)


def test_a_part_that_is_not_there_is_named(make_job: Make) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.compile: no part 'lm'"):
        set_up_blocks(make_job().plan.build().parts(), [], ["lm"])


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_trained_weights_in_16_bit_are_refused(precision: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.precision: {precision}(.*\n)*.*bf16-mixed"):
        TrainerConfig(precision=precision)


def test_a_deepspeed_that_is_not_ours_is_refused_with_what_to_take_instead() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.strategy: deepspeed_stage_3_offload(.*\n)*.*deepspeed_zero3"):
        build_strategy("deepspeed_stage_3_offload", 600, 8)


def test_deepspeed_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"trainer\.strategy: deepspeed_stage_2, but(.*\n)*.*mmexp\[deepspeed\]"):
        build_strategy("deepspeed_stage_2", 600, 8)
