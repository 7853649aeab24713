"""One stage end to end: exact resume, exact accumulation, the chain of stages, and what must not move."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmexp.data import Collator, LlavaJsonConfig
from mmexp.engine import Interrupted, StageJob, TrainerConfig, fit, load_weights
from mmexp.engine.checkpoint import newest
from mmexp.engine.module import TrainingModule
from mmexp.errors import CheckpointError, ConfigError, DataError
from mmexp.llm import TinyLlmConfig
from mmexp.page import spent_before

Make = Callable[..., StageJob]
ALIGN = {"encoder": "frozen", "connector": "full", "llm": "frozen"}


def run(job: StageJob) -> TrainingModule:
    return fit(job, lambda table: None)


def losses(job: StageJob) -> list[float]:
    lines = (job.run.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def assert_same_weights(one: StageJob, other: StageJob) -> None:
    files = sorted(file.name for file in one.run.weights.glob("*.safetensors"))
    assert files == sorted(file.name for file in other.run.weights.glob("*.safetensors"))
    for file in files:
        mine, theirs = load_file(one.run.weights / file), load_file(other.run.weights / file)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine), file


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_loss_falls_and_only_what_trains_is_written(make_job: Make) -> None:
    job = make_job(max_steps=12)
    module = run(job)
    values = losses(job)
    assert len(values) == 12
    assert values[-1] < 0.8 * values[0]
    assert {file.name for file in job.run.weights.iterdir()} == {"connector.safetensors", "llm.safetensors"}
    manifest = job.run.manifest()
    assert manifest["status"] == "trained"
    assert manifest["derived"]["soft_tokens"] == {"image": 4}
    state = torch.load(newest(job.run.checkpoints), weights_only=True)["state_dict"]
    assert not any(name.startswith("model.inputs.image.encoder") for name in state)
    assert not module.training


@pytest.mark.parametrize("stops", [(1,), (3,), (2, 4), (0, 5)])
def test_a_stopped_run_continues_bit_for_bit(make_job: Make, monkeypatch: pytest.MonkeyPatch, stops: tuple) -> None:
    whole, broken = make_job("whole"), make_job("broken")
    run(whole)
    halves = [broken.run.checkpoints / ".step_00000002.ckpt.1a.tmp", broken.run.weights / ".llm.safetensors.1a.tmp"]
    for half in halves:
        half.write_text("what a kill in the middle of a write leaves")
    step = TrainingModule.training_step
    for stop in stops:

        def interrupted(self: Any, batch: Any, index: int, stop: int = stop) -> Any:
            if self.trainer.global_step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, batch, index)

        monkeypatch.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(Interrupted):
            run(broken)
        assert broken.run.manifest()["status"] == "interrupted"
    monkeypatch.setattr(TrainingModule, "training_step", step)
    run(broken)
    assert losses(broken) == losses(whole)
    assert_same_weights(broken, whole)
    assert not any(half.exists() for half in halves)


def test_accumulation_weights_by_supervised_tokens(make_job: Make) -> None:
    one, four = make_job("one", micro_batch_size=4), make_job("four", micro_batch_size=1)
    run(one)
    run(four)
    torch.testing.assert_close(torch.tensor(losses(one)), torch.tensor(losses(four)), atol=2e-4, rtol=2e-4)


def test_padded_rows_train_as_flat_ones(make_job: Make) -> None:
    flat, padded = make_job("flat"), make_job("padded", row="padded")
    run(flat)
    run(padded)
    torch.testing.assert_close(torch.tensor(losses(flat)), torch.tensor(losses(padded)), atol=2e-4, rtol=2e-4)


def test_workers_change_nothing(make_job: Make) -> None:
    alone, helped = make_job("alone"), make_job("helped", num_workers=2)
    run(alone)
    run(helped)
    assert_same_weights(alone, helped)


def test_a_stage_starts_from_what_the_one_before_wrote(make_job: Make) -> None:
    first = make_job("align", policy=ALIGN)
    run(first)
    policy = {"encoder": "frozen", "connector": "frozen", "llm": "full"}
    second = make_job("instruct", init_from=(first.run,), policy=policy)
    module = run(second)
    assert first.run.manifest()["derived"]["before"] == {}
    assert second.run.manifest()["derived"]["before"] == pytest.approx(spent_before([first.run.path]))
    assert spent_before([first.run.path])["samples"] > 0
    for name, tensor in load_file(first.run.weights / "connector.safetensors").items():
        assert torch.equal(module.parts()["connector"].state_dict()[name], tensor)
    handed_on = second.plan.build()
    changed = load_weights(handed_on.parts(), second.run)
    assert set(changed) == {"connector", "llm"}, "a run directory alone must be enough"
    for name, tensor in module.parts()["llm"].state_dict().items():
        assert torch.equal(handed_on.parts()["llm"].state_dict()[name], tensor)


def test_lora_is_merged_into_the_next_stage(make_job: Make) -> None:
    first = make_job("lora", policy={"encoder": "frozen", "connector": "full", "llm": "lora"})
    module = run(first)
    assert (first.run.weights / "llm_lora" / "adapter_config.json").is_file()
    ids = torch.randint(3, 200, (1, 9))
    again = first.plan.build().eval()
    load_weights(again.parts(), first.run)
    with torch.no_grad():
        merged, adapted = again.llm.model(input_ids=ids).logits, module.model.llm.model(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    second = make_job("after", init_from=(first.run,), policy=ALIGN)
    run(second)
    third = second.plan.build().eval()
    load_weights(third.parts(), second.run)
    with torch.no_grad():
        torch.testing.assert_close(third.llm.model(input_ids=ids).logits, merged, atol=1e-5, rtol=1e-5)


def test_a_connector_of_another_pair_is_refused(make_job: Make) -> None:
    first = make_job("align", policy=ALIGN)
    run(first)
    other = make_job("other", init_from=(first.run,))
    with pytest.raises(CheckpointError, match="encoder-LLM pair"):
        run(replace(other, plan=replace(other.plan, llm=TinyLlmConfig(width=64))))


def test_a_damaged_weight_file_is_refused(make_job: Make) -> None:
    first = make_job("align")
    run(first)
    flip_a_byte(first.run.weights / "connector.safetensors")
    with pytest.raises(CheckpointError, match=r"connector\.safetensors"):
        run(make_job("next", init_from=(first.run,)))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(make_job: Make) -> None:
    job = make_job("run")
    run(job)
    flip_a_byte(newest(job.run.checkpoints))
    assert newest(job.run.checkpoints).name == "step_00000004.ckpt"


def test_a_checkpoint_of_another_policy_is_refused(make_job: Make) -> None:
    run(make_job("run"))
    with pytest.raises(CheckpointError, match="not trained here"):
        run(make_job("run", max_steps=8, policy=ALIGN))


def test_a_batch_that_does_not_divide_is_refused(make_job: Make) -> None:
    with pytest.raises(ConfigError, match=r"stage\.batch_size=6"):
        run(make_job(batch_size=5))


def test_five_bad_steps_in_a_row_stop_the_run_and_spare_the_weights(make_job: Make, monkeypatch: Any) -> None:
    step = TrainingModule.training_step
    monkeypatch.setattr(TrainingModule, "training_step", lambda self, b, i: step(self, b, i) * float("nan"))
    job = make_job(max_steps=8)
    with pytest.raises(DataError, match="not finite"):
        run(job)
    assert job.run.manifest()["status"] == "failed"
    for file in job.run.checkpoints.glob("*.ckpt"):
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_text_only_batches_train_with_an_open_encoder(make_job: Make, tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    (tmp_path / "text.json").write_text(json.dumps([{"id": str(i), "conversations": talk} for i in range(8)]))
    policy = {"encoder": "full", "connector": "full", "llm": "full"}
    with pytest.raises(ConfigError, match=r"none moved"):
        run(make_job("text", data=LlavaJsonConfig(path=str(tmp_path / "text.json")), policy=policy))


def test_batches_move_to_a_device(make_job: Make) -> None:
    job = make_job()
    items = [job.plan.processor.encode(job.data.build()[index]) for index in (0, 3, 4)]
    batch = Collator(pad_id=job.plan.tokenizer.pad_id)(items).to("meta")
    assert batch.input_ids.device.type == "meta"
    assert batch.media["image"].device.type == "meta"


def test_frozen_weights_in_bfloat16_change_no_bit_and_are_not_handed_on(make_job: Make) -> None:
    jobs = [
        make_job(
            name,
            policy=ALIGN,
            trainer=TrainerConfig(
                accelerator="cpu", precision="bf16-mixed", cast_frozen=cast, log_every_n_steps=1,
                checkpoint_every_n_steps=100,
            ),
        )
        for name, cast in (("cast", True), ("plain", False))
    ]  # fmt: skip
    modules = [run(job) for job in jobs]
    assert [module.has_cast for module in modules] == [True, False]
    assert losses(jobs[0]) == losses(jobs[1])
    assert_same_weights(*jobs)
    again = run(make_job("next", policy=ALIGN, init_from=(jobs[0].run,)))
    assert {p.dtype for p in again.parameters()} == {torch.float32}


@pytest.mark.parametrize(("precision", "casts"), [("bf16-mixed", False), ("32-true", True)])
def test_adapters_leave_casts_to_autocast_while_a_run_lasts(
    make_job: Make, monkeypatch: pytest.MonkeyPatch, precision: str, casts: bool
) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain, seen = BaseTunerLayer._cast_input_dtype, set()

    def watched(layer: Any, x: Any, dtype: Any) -> Any:
        seen.add(layer.cast_input_dtype_enabled)
        return plain(layer, x, dtype)

    monkeypatch.setattr(BaseTunerLayer, "_cast_input_dtype", watched)
    trainer = TrainerConfig(accelerator="cpu", precision=precision, checkpoint_every_n_steps=100)
    module = run(make_job("lora", policy={**ALIGN, "llm": "lora"}, trainer=trainer))
    assert seen == {casts}
    adapted = [each for each in module.modules() if isinstance(each, BaseTunerLayer)]
    assert adapted
    assert all(each.cast_input_dtype_enabled for each in adapted)
