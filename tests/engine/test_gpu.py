"""Training on one GPU beside the same on the CPU: `make gpu`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mmexp.engine import StageJob, TrainerConfig, fit
from mmexp.llm import CausalConfig, TinyLlmConfig

pytestmark = pytest.mark.gpu
Make = Callable[..., StageJob]
GPU = "gpu"


def losses(job: StageJob) -> list[float]:
    fit(job, lambda table: None)
    lines = (job.run.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def trainer(accelerator: str = GPU, **settings: Any) -> TrainerConfig:
    return TrainerConfig(
        accelerator=accelerator, log_every_n_steps=1, checkpoint_every_n_steps=2, unused_parameters=False, **settings
    )


@pytest.mark.parametrize("row", ["flat", "padded", "packed"])
def test_float32_learns_what_the_cpu_learns(make_job: Make, row: str) -> None:
    cpu = losses(make_job("cpu", trainer=trainer("cpu"), row=row))
    assert losses(make_job("gpu", trainer=trainer(), row=row)) == pytest.approx(cpu, rel=1e-3)


@pytest.mark.parametrize("row", ["flat", "packed"])  # flat rows take the kernel for segments of different lengths
def test_bf16_follows_float32(make_job: Make, row: str) -> None:
    exact = losses(make_job("exact", trainer=trainer(), row=row))
    assert losses(make_job("bf16", trainer=trainer(precision="bf16-mixed"), row=row)) == pytest.approx(exact, rel=0.05)


def test_compiled_and_recomputed_blocks_change_no_loss(make_job: Make) -> None:
    plain = losses(make_job("plain", trainer=trainer()))
    assert losses(make_job("compiled", trainer=trainer(compile=("encoder",)))) == pytest.approx(plain, rel=1e-3)
    recomputed = trainer(gradient_checkpointing=("llm", "encoder"))
    assert losses(make_job("recomputed", trainer=recomputed)) == pytest.approx(plain, rel=1e-3)


def test_fsdp_on_one_gpu_is_one_gpu(make_job: Make) -> None:
    plain = losses(make_job("plain", trainer=trainer(precision="bf16-mixed")))
    sharded = losses(make_job("fsdp", trainer=trainer(precision="bf16-mixed", strategy="fsdp")))
    assert sharded == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_lora_on_few_bits_learns(make_job: Make, tmp_path: Path, storage: str) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=259,
                                      num_attention_heads=4, max_position_embeddings=512)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    TinyLlmConfig().load_tokenizer().save_pretrained(tmp_path / "llama")
    plan = make_job("unused").plan
    llm = CausalConfig(path=str(tmp_path / "llama"), quantize=storage, dtype="bfloat16")  # type: ignore[arg-type]
    job = make_job("lora", max_steps=30, plan=replace(plan, llm=llm), trainer=trainer(precision="bf16-mixed"),
                   policy={"encoder": "frozen", "connector": "full", "llm": "lora"})  # fmt: skip
    found = losses(job)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    assert (job.run.weights / "llm_lora" / "adapter_model.safetensors").is_file()
