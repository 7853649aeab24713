"""Candidates scored together have the log-probabilities that each has alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration

from mmexp.contracts import IGNORE, Medium, Sample, Text, Turn
from mmexp.data import Collator
from mmexp.engine import Generator, StageJob
from mmexp.errors import ConfigError, DataError
from mmexp.llm import NoLlmConfig, Seq2SeqConfig, TinyLlmConfig
from mmexp.model import Plan
from tests.engine.test_together import llm_of
from tests.shared_data import load_template

MakeJob = Callable[..., StageJob]
CANDIDATES = (["yes", "no", "yes it is"], ["a star", "a cross"], ["left", "right", "above", "below", "lef"], ["x", "y"])


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Two about one picture, one with an earlier answer; one with two pictures; one without any."""
    for name, colour in (("a", (200, 30, 30)), ("b", (20, 40, 220))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    first, second = (Medium(source=str(tmp_path / f"{name}.png")) for name in "ab")

    def said(role: Any, text: str, *media: Medium) -> Turn:
        return Turn(role=role, parts=(*media, Text(text=text)))

    talk = (said("user", "What is it?", first), said("assistant", "a ring"), said("user", "And this?"))
    return [
        Sample(id="one", turns=(said("user", "Is it red?", first),)),
        Sample(id="talk", turns=talk),
        Sample(id="two", turns=(said("user", "Where?", first, second),)),
        Sample(id="text", turns=(said("user", "Which letter?"),)),
    ]


def alone(model: Any, plan: Plan, sample: Sample, text: str, num_end: int) -> tuple[float, int]:
    """By a plain forward pass of the row that training would make, one logit of each answer token after the other."""
    said = Turn(role="assistant", parts=(Text(text=text),))
    item = plan.processor.encode(replace(sample, turns=(*sample.turns, said)))
    prompt = len(plan.processor.prompt_layout(sample).encoded.ids)
    labels = item.labels.clone()
    labels[:prompt] = IGNORE  # earlier answers
    labels[len(labels) - num_end :] = IGNORE
    batch = Collator(pad_id=plan.tokenizer.pad_id, row="padded")([replace(item, labels=labels)])
    with torch.no_grad():
        logits = model.llm.logits(model(batch).hidden)[0]
    places = (labels != IGNORE).nonzero().flatten()
    chances = functional.log_softmax(logits[places - 1], -1)
    return float(chances.gather(1, labels[places, None]).sum()), len(places)


def check(generator: Generator, samples: Sequence[Sample], num_end: int = 1) -> list[float]:
    """Compares both ways, with the end of answers and without it; gives the scores."""
    model, plan = generator.model, generator.plan
    found = []
    for with_end in (False, True):
        scores = generator.score(samples, CANDIDATES, with_end)
        assert [len(each) for each in scores] == [len(texts) for texts in CANDIDATES]
        for sample, texts, own in zip(samples, CANDIDATES, scores, strict=True):
            for text, score in zip(texts, own, strict=True):
                log_prob, count = alone(model, plan, sample, text, 0 if with_end else num_end)
                assert score.num_tokens == count
                assert score.log_prob == pytest.approx(log_prob, rel=1e-5, abs=1e-5)
                found.append(score.log_prob)
    return found


def pictures_seen(model: Any) -> list[int]:
    """Fills up with the number of pictures of each call of the encoder."""
    seen: list[int] = []
    model.inputs["image"].encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("kind", ["llama", "opt", "qwen2"])
def test_together_is_as_alone(
    make_job: MakeJob, samples: Sequence[Sample], kind: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_job().plan
    torch.manual_seed(0)
    model = plan.build().eval()
    model.llm = llm_of(kind, len(model.llm.model.get_input_embeddings().weight)).eval()
    if apart:  # as with a sliding window
        monkeypatch.setattr(type(model.llm), "shares_beginnings", property(lambda llm: False))
    found = check(Generator(model, plan), samples)
    assert len({round(score, 2) for score in found}) > len(found) // 2  # else equality would say little
    seen = pictures_seen(model)
    Generator(model, plan).score(samples, CANDIDATES)
    assert seen == [3]  # one for two samples, and two for the sample with two pictures


def test_what_candidates_share_is_read_once(make_job: MakeJob, samples: Sequence[Sample]) -> None:
    plan = make_job().plan
    model = plan.build().eval()
    lengths: list[int] = []
    model.llm.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    texts = [f"number {index}" for index in range(9)]
    for sample in (samples[0], samples[3]):
        prompt = len(plan.processor.prompt_layout(sample).encoded.ids)
        Generator(model, plan).score([sample], [texts])
        assert prompt <= lengths.pop() <= prompt + 9 * len(" number 0")


def test_an_encoder_decoder_scores_what_its_decoder_writes(
    make_job: MakeJob, samples: Sequence[Sample], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2, "vocab_size": 259}
    ends = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    T5ForConditionalGeneration(T5Config(**shape, **ends, feed_forward_proj="gated-gelu")).save_pretrained(tmp_path)
    TinyLlmConfig().load_tokenizer().save_pretrained(tmp_path)
    llm = Seq2SeqConfig(path=str(tmp_path), dense_act_fn="gelu")
    plan = replace(make_job().plan, llm=llm, template=load_template("blip2_t5_vqa"))
    model = plan.build().eval()
    for parameter in model.llm.parameters():  # large enough that the prompt decides what is said
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    found = check(Generator(model, plan), samples)
    assert len({round(score, 2) for score in found}) > len(found) // 2
    seen = pictures_seen(model)
    Generator(model, plan).score(samples, CANDIDATES)
    assert seen == [3]


def test_a_template_with_supervised_marks_scores_the_words_alone(make_job: MakeJob, samples: Sequence[Sample]) -> None:
    template = load_template("vicuna_v0")  # loss on the words before an answer and on the newline behind it
    plan = replace(make_job().plan, template=template, max_length_tokens=1024)
    generator = Generator(plan.build().eval(), plan)
    plain, ended = (generator.score(samples[:1], [["yes"]], with_end)[0][0] for with_end in (False, True))
    assert plain.num_tokens == len(" yes")
    assert ended.num_tokens == len(" yes\n")


def test_mistakes_are_named(make_job: MakeJob, samples: Sequence[Sample], tmp_path: Path) -> None:
    plan = make_job().plan
    generator = Generator(plan.build().eval(), plan)
    assert generator.score(samples[:1], [[]]) == [[]]
    with pytest.raises(DataError, match=r"(?s)sample 'one'.*the candidate ' '.*leave empty candidates out"):
        generator.score(samples[:1], [[" "]])
    with pytest.raises(DataError, match="user and assistant in alternation"):
        generator.score([replace(samples[1], turns=samples[1].turns[:2])], [["x"]])
    with pytest.raises(DataError, match="at most 512 tokens"):
        generator.score(samples[:1], [["x" * 600]])
    TinyLlmConfig().load_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no LLM"):
        none = replace(plan, inputs={}, llm=NoLlmConfig(tokenizer=str(tmp_path)))
        Generator(generator.model, none).score(samples[:1], [["x"]])
