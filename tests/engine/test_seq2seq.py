"""An encoder-decoder LLM in a whole run: the same data and objective, a template that writes two texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from mmexp.contracts import Sample, Text, Turn
from mmexp.data import Collator
from mmexp.engine import Generator, StageJob, fit
from mmexp.errors import ConfigError
from mmexp.llm import Sampling, Seq2SeqConfig, TinyLlmConfig
from tests.shared_data import load_template

Make = Callable[..., StageJob]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqConfig:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("t5")
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2, "vocab_size": 259}
    ends = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    T5ForConditionalGeneration(T5Config(**shape, **ends, feed_forward_proj="gated-gelu")).save_pretrained(folder)
    TinyLlmConfig().load_tokenizer().save_pretrained(folder)
    return Seq2SeqConfig(path=str(folder), dense_act_fn="gelu")


def job_of(
    make_job: Make, config: Seq2SeqConfig, name: str, template: str = "blip2_t5_vqa", **changes: Any
) -> StageJob:
    job = make_job(name, **{"policy": {"encoder": "frozen", "connector": "full", "llm": "full"}, **changes})
    return replace(job, plan=replace(job.plan, llm=config, template=load_template(template)))


def losses(job: StageJob) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (job.run.path / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_answers(make_job: Make, config: Seq2SeqConfig) -> None:
    job = job_of(make_job, config, "vqa", max_steps=30)
    module = fit(job, lambda table: None)
    assert losses(job)[-1] < 0.6 * losses(job)[0]
    samples = [Sample(id=str(n), turns=(Turn(role="user", parts=(Text(text="Hello?" * n),)),)) for n in (1, 3)]
    generator = Generator(module.model.eval(), job.plan)
    answers = generator.predict(samples, Sampling(max_new_tokens=6, num_beams=3, length_penalty=-1.0))
    assert answers == [generator.predict([s], Sampling(max_new_tokens=6, num_beams=3, length_penalty=-1.0))[0]
                       for s in samples]  # fmt: skip
    assert all(set(answer) <= set("yes ") for answer in answers)


def test_rows_are_a_matter_of_layout_only(make_job: Make, config: Seq2SeqConfig) -> None:
    runs = {row: job_of(make_job, config, row, row=row, live_dropout=()) for row in ("flat", "padded", "packed")}
    items = [runs["flat"].plan.processor.encode(runs["flat"].data.build()[index]) for index in range(5)]
    model = runs["flat"].plan.build().eval()
    found = []
    for row in runs:
        batch = Collator(pad_id=0, row=row, capacity=512)(items)
        found.append(
            (sum(model.score(batch)), float(runs[row].objective.build(runs[row].plan)(model, batch).sums["lm"]))
        )
    torch.testing.assert_close(torch.tensor(found), torch.tensor([found[0]] * 3), atol=1e-3, rtol=1e-5)
    assert found[0][0] == pytest.approx(-found[0][1], rel=1e-5)


def test_a_caption_is_split_and_trains(make_job: Make, config: Seq2SeqConfig) -> None:
    job = job_of(make_job, config, "prefix", template="blip2_t5_align")
    fit(job, lambda table: None)
    assert losses(job)[-1] < losses(job)[0]


def test_a_frozen_llm_keeps_its_dropout_for_the_whole_run(make_job: Make, config: Seq2SeqConfig) -> None:
    frozen = {"encoder": "frozen", "connector": "full", "llm": "frozen"}
    still = job_of(make_job, config, "still", policy=frozen)
    live = job_of(make_job, config, "live", policy=frozen, live_dropout=("llm",))
    again = job_of(make_job, config, "again", policy=frozen, live_dropout=("llm",))
    modules = [fit(job, lambda table: None) for job in (still, live, again)]
    assert losses(live) == losses(again)
    assert all(one != other for one, other in zip(losses(still), losses(live), strict=True))
    weights = [module.model.llm.state_dict() for module in modules if module.model is not None]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_template_for_decoders_is_one_clear_mistake(make_job: Make, config: Seq2SeqConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        job_of(make_job, config, "wrong", template="blip2_vqa")
    assert "writes prompt and answer as one text" in str(caught.value)
    assert "template=blip2_t5_vqa" in str(caught.value)
