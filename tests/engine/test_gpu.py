"""What one GPU does, beside the same on the CPU: `make gpu`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from mmexp.connector import QformerConfig, ResamplerConfig
from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.data import LlavaJsonConfig
from mmexp.engine import Generator, StageJob, TrainerConfig, TrainingModule, fit
from mmexp.engine.memory import OutOfMemory
from mmexp.evaluation import VqaConfig
from mmexp.llm import CausalConfig, Sampling, Seq2SeqConfig, TinyLlmConfig, attention
from mmexp.model import InputPlan
from mmexp.objective import Blip2RepresentConfig
from mmexp.tuning import LoraSettings
from tests.assets.make_bert import make_tokenizer
from tests.engine.conftest import StoppedAt
from tests.objective.blip2_parts import make_batch, make_plan, make_samples
from tests.shared_data import load_template

pytestmark = pytest.mark.gpu
Make = Callable[..., StageJob]
GPU = "gpu"
CONNECTORS = {
    "mlp": None,
    "qformer": QformerConfig(num_queries=4, width=16, num_layers=2, num_heads=2, ffn_width=24, dropout=0.0),
    "resampler": ResamplerConfig(num_queries=4),
}


def losses(job: StageJob) -> list[float]:
    fit(job, lambda table: None)
    lines = (job.run.path / "metrics.jsonl").read_text().splitlines()
    return [row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row]


def trainer(accelerator: str = GPU, **settings: Any) -> TrainerConfig:
    return TrainerConfig(
        accelerator=accelerator, log_every_n_steps=1, checkpoint_every_n_steps=2, unused_parameters=False, **settings
    )


def plan_with(plan: Any, connector: str) -> Any:
    config = CONNECTORS[connector]
    if config is None:
        return plan
    return replace(plan, inputs={"image": InputPlan(encoder=plan.inputs["image"].encoder, connector=config)})


@pytest.fixture
def captions(rows: Path, tmp_path: Path) -> LlavaJsonConfig:
    """Five pictures with three texts each."""
    records = []
    for index in range(15):
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"number {index} " * (1 + index % 3)}]
        records.append({"id": f"r{index}", "image": f"{5 + index % 5}.png", "conversations": turns})
    (tmp_path / "captions.json").write_text(json.dumps(records))
    return LlavaJsonConfig(path=str(tmp_path / "captions.json"), image_root=str(rows.parent))


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of tokens that the kernel for segments of different lengths was called with."""
    plain, calls = attention._varlen, []

    def counted(query: Any, *args: Any) -> Any:
        calls.append(query.shape[2])
        return plain(query, *args)

    monkeypatch.setattr(attention, "_varlen", counted)
    return calls


@pytest.mark.parametrize("connector", list(CONNECTORS))
@pytest.mark.parametrize("row", ["flat", "padded", "packed"])
def test_float32_learns_what_the_cpu_learns(make_job: Make, row: str, connector: str) -> None:
    plan = plan_with(make_job("unused").plan, connector)
    cpu = losses(make_job("cpu", trainer=trainer("cpu"), row=row, plan=plan))
    assert losses(make_job("gpu", trainer=trainer(), row=row, plan=plan)) == pytest.approx(cpu, rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_shared_rows_learn_what_the_cpu_learns(make_job: Make, captions: LlavaJsonConfig, precision: str) -> None:
    cpu = losses(make_job("cpu", trainer=trainer("cpu"), row="shared", data=captions))
    own = losses(make_job("gpu", trainer=trainer(precision=precision), row="shared", data=captions))
    assert own == pytest.approx(cpu, rel=1e-3 if precision == "32-true" else 0.05)


@pytest.mark.parametrize("row", ["flat", "packed"])
def test_bf16_follows_float32(make_job: Make, row: str, kernel_calls: list[int]) -> None:
    exact = losses(make_job("exact", trainer=trainer(), row=row))
    assert not kernel_calls
    assert losses(make_job("bf16", trainer=trainer(precision="bf16-mixed"), row=row)) == pytest.approx(exact, rel=0.05)
    assert kernel_calls


def test_no_attention_of_the_llm_is_planned_for_its_shape(make_job: Make) -> None:
    with torch.profiler.profile() as profile:
        losses(make_job("bf16", trainer=trainer(precision="bf16-mixed")))
    names = {event.name for event in profile.events() or ()}
    assert any("attention" in name and "ackward" in name for name in names)
    assert not any("cudnn_attention_backward" in name for name in names)  # a frozen encoder has forward passes alone


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_compiled_blocks_change_no_loss(make_job: Make, part: str, precision: str) -> None:
    plain = losses(make_job("plain", trainer=trainer(precision=precision)))
    compiled = losses(make_job("compiled", trainer=trainer(compile=(part,), precision=precision)))
    assert compiled == pytest.approx(plain, rel=1e-3 if precision == "32-true" else 0.05)


def test_recomputed_blocks_change_no_loss(make_job: Make) -> None:
    plain = losses(make_job("plain", trainer=trainer(precision="bf16-mixed")))
    recomputed = trainer(gradient_checkpointing=("llm", "encoder"), precision="bf16-mixed")
    assert losses(make_job("recomputed", trainer=recomputed)) == pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize("strategy", ["fsdp", "ddp", "deepspeed_stage_2", "deepspeed_stage_3"])
def test_a_strategy_on_one_gpu_is_one_gpu(make_job: Make, strategy: str) -> None:
    if strategy.startswith("deepspeed"):
        pytest.importorskip("deepspeed", reason="the extra `deepspeed`")
    plain = losses(make_job("plain", trainer=trainer(precision="bf16-mixed")))
    own = losses(make_job(strategy, trainer=trainer(precision="bf16-mixed", strategy=strategy)))
    assert own == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize("recompute", [(), ("llm",)])
@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_lora_on_few_bits_learns_and_answers(
    make_job: Make, tmp_path: Path, storage: str, recompute: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=259,
                                      num_attention_heads=4, max_position_embeddings=512)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    TinyLlmConfig().load_tokenizer().save_pretrained(tmp_path / "llama")
    plan = make_job("unused").plan
    llm = CausalConfig(path=str(tmp_path / "llama"), quantize=storage, dtype="bfloat16")  # type: ignore[arg-type]
    job = make_job("lora", max_steps=30, plan=replace(plan, llm=llm),
                   trainer=trainer(precision="bf16-mixed", gradient_checkpointing=recompute),
                   policy={"encoder": "frozen", "connector": "full", "llm": "lora"})  # fmt: skip
    module = fit(job, lambda table: None)
    found = [json.loads(line)["train/loss"] for line in (job.run.path / "metrics.jsonl").read_text().splitlines()]
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    assert (job.run.weights / "llm_lora" / "adapter_model.safetensors").is_file()
    assert module.model is not None
    generator = Generator(module.model.eval().cuda(), job.plan)
    with torch.autocast("cuda", torch.bfloat16):
        answers = generator.predict(questions(tmp_path), Sampling(max_new_tokens=8))
    assert len(answers) == 5


def questions(folder: Path) -> list[Sample]:
    """Four about two pictures, and one without."""
    found = []
    for index, text in enumerate(("What?", "What colour is it?", "Where?", "Is there one?")):
        file = folder / f"{index % 2}.png"
        Image.new("RGB", (40, 30), (90 * (index % 2), 200, 30)).save(file)
        parts = (Medium(source=str(file)), Text(text=text))
        found.append(Sample(id=str(index), turns=(Turn(role="user", parts=parts),)))
    return [*found, Sample(id="text", turns=(Turn(role="user", parts=(Text(text="Hello?"),)),))]


def test_answers_are_those_of_the_cpu(make_job: Make, tmp_path: Path) -> None:
    plan = make_job("unused").plan
    torch.manual_seed(0)
    model = plan.build().eval()
    for parameter in model.llm.parameters():  # large enough that attention decides what is said
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    asked, sampling = questions(tmp_path), Sampling(max_new_tokens=12)
    expected = Generator(model, plan).predict(asked, sampling)
    assert len(set(expected)) > 2
    model.cuda()
    assert Generator(model, plan).predict(asked, sampling) == expected
    assert [Generator(model, plan).predict([one], sampling)[0] for one in asked] == expected
    drawn = Sampling(max_new_tokens=12, temperature=1.0, seed=3)
    assert Generator(model, plan).predict(asked, drawn) == Generator(model, plan).predict(asked, drawn)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_candidates_have_the_chances_that_the_cpu_gives(make_job: Make, tmp_path: Path, precision: str) -> None:
    plan = make_job("unused").plan
    torch.manual_seed(0)
    model = plan.build().eval()
    asked, candidates = questions(tmp_path), [["a star", "a cross", "a"]] * 5
    expected = [[each.log_prob for each in row] for row in Generator(model, plan).score(asked, candidates)]
    model.cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
        found = [[each.log_prob for each in row] for row in Generator(model, plan).score(asked, candidates)]
    for mine, cpu in zip(found, expected, strict=True):
        assert mine == pytest.approx(cpu, rel=1e-4 if precision == "32-true" else 0.02)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_evaluating_meanwhile_changes_no_loss(
    make_job: Make, rows: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    heldout = VqaConfig(splits={"heldout": LlavaJsonConfig(path=str(rows))}, batch_size=2, max_new_tokens=4)
    own = {"benchmarks": {"vqa": heldout}, "lora": LoraSettings(rank=2, alpha=4, dropout=0.5),
           "policy": {"encoder": "frozen", "connector": "full", "llm": "lora"}}  # fmt: skip
    plain = losses(make_job("plain", trainer=trainer(precision=precision), **own))
    watched = make_job(
        "watched", trainer=trainer(precision=precision, evaluate_every_n_steps=2, evaluate_samples=5), **own
    )
    assert losses(watched) == pytest.approx(plain, rel=1e-5 if precision == "32-true" else 1e-3)
    lines = [json.loads(line) for line in (watched.run.path / "metrics.jsonl").read_text().splitlines()]
    assert sum("val/heldout/vqa/exact_match" in line for line in lines) == 2


def test_an_encoder_decoder_learns_what_the_cpu_learns(make_job: Make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2, "vocab_size": 259}
    ends = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    config = transformers.T5Config(**shape, **ends, feed_forward_proj="gated-gelu", dropout_rate=0.0)  # type: ignore[arg-type]
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    TinyLlmConfig().load_tokenizer().save_pretrained(tmp_path / "t5")
    llm = Seq2SeqConfig(path=str(tmp_path / "t5"), dense_act_fn="gelu")
    plan = replace(make_job("unused").plan, llm=llm, template=load_template("blip2_t5_vqa"))
    cpu = losses(make_job("cpu", trainer=trainer("cpu"), plan=plan))
    assert losses(make_job("gpu", trainer=trainer(), plan=plan)) == pytest.approx(cpu, rel=1e-3)


def test_contrast_matching_and_generation_are_those_of_the_cpu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = make_plan(make_tokenizer(tmp_path))
    objective: Any = Blip2RepresentConfig(width=8).build(plan)
    model, batch = plan.build().eval(), make_batch(plan, make_samples(6))
    objective.eval()
    with torch.no_grad():
        cpu = objective(model, batch)
    gpu = objective.cuda()(model.cuda(), batch.to(torch.device("cuda")))
    for name in ("itc", "itg"):  # negatives of the matching are drawn by the device
        assert float(gpu.sums[name].detach()) == pytest.approx(float(cpu.sums[name]), rel=1e-4)
    torch.stack(list(gpu.sums.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_features_from_the_cache_are_those_of_the_encoder(make_job: Make, tmp_path: Path) -> None:
    policy = {"encoder": "frozen", "connector": "full", "llm": "frozen"}
    own = {"policy": policy, "trainer": trainer(precision="bf16-mixed"), "epochs": 2.0, "max_steps": None}
    plain = losses(make_job("plain", **own))
    job = make_job("cached", cache=tmp_path / "c", feature_cache_gb=1.0, **own)
    assert losses(job) == pytest.approx(plain, rel=1e-2)
    assert job.run.manifest()["feature_cache"]["hits"] > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    make_job: Make, monkeypatch: pytest.MonkeyPatch, stopped_at: StoppedAt, precision: str
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    whole = losses(make_job("whole", trainer=trainer(precision=precision)))
    broken = make_job("broken", trainer=trainer(precision=precision))
    with stopped_at(3):
        losses(broken)
    assert losses(broken) == pytest.approx(whole, rel=1e-5 if precision == "32-true" else 1e-3)


def test_a_full_card_names_the_batch_and_what_takes_less(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrainingModule.training_step

    def hungry(self: Any, batch: Any, index: int) -> Any:
        torch.empty(2**48, device=self.device) if index == 2 else None
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", hungry)
    with pytest.raises(OutOfMemory, match=r"micro-batch of 2 samples(.|\n)*Tensors held 0\.\d of the \d+\.\d GB of"):
        losses(make_job("full", trainer=trainer()))
