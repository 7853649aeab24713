"""Flan-T5 in its published format: the same loss, logits and answers as transformers gives for two separate texts."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration

from mmexp.contracts import IGNORE
from mmexp.errors import ConfigError
from mmexp.llm import CausalConfig, Sampling, Seq2SeqConfig, Seq2SeqLlm, TinyLlmConfig
from mmexp.model.splice import left_pad
from tests.differences import Differences

PROMPTS, ANSWERS = (6, 3, 1), (4, 1, 7)


@pytest.fixture(scope="module", params=["flan", "1.0"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers a side. Flan-T5 has gated GELU and a head of its own, T5 1.0 takes its embedding for a head."""
    torch.manual_seed(0)
    flan = request.param == "flan"
    config = T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=259, initializer_factor=2.0,
        feed_forward_proj="gated-gelu" if flan else "relu", tie_word_embeddings=not flan, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    if flan:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(259, 32))
    out = tmp_path_factory.mktemp("t5")
    model.save_pretrained(out)
    written = json.loads((out / "config.json").read_text())  # as published: a head of its own is an untied embedding
    del written["scale_decoder_outputs"], written["dense_act_fn"], written["is_gated_act"]
    (out / "config.json").write_text(json.dumps(written | {"tie_word_embeddings": not flan}))
    TinyLlmConfig().load_tokenizer().save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def llm(folder: Path) -> Seq2SeqLlm:
    return Seq2SeqConfig(path=str(folder)).build().eval()


@pytest.fixture(scope="module")
def reference(folder: Path) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()


def texts() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(1)
    return [torch.randint(3, 259, (n,)) for n in PROMPTS], [torch.randint(3, 259, (n,)) for n in ANSWERS]


def laid_out(row: str) -> tuple[torch.Tensor, torch.Tensor, tuple, tuple]:
    """Ids, labels, segment lengths and prompt lengths of the three samples."""
    prompts, answers = texts()
    both = [torch.cat(pair) for pair in zip(prompts, answers, strict=True)]
    told = [torch.cat([torch.full_like(p, IGNORE), a]) for p, a in zip(prompts, answers, strict=True)]
    if row == "flat":
        return torch.cat(both)[None], torch.cat(told)[None], (tuple(map(len, both)),), (PROMPTS,)
    pad = torch.nn.utils.rnn.pad_sequence
    lengths, prompt_lengths = tuple((len(ids),) for ids in both), tuple((n,) for n in PROMPTS)
    return pad(both, True, 0), pad(told, True, IGNORE), lengths, prompt_lengths


@pytest.mark.parametrize("row", ["flat", "padded"])
def test_loss_and_logits_equal_transformers(
    differences: Differences, llm: Seq2SeqLlm, reference: T5ForConditionalGeneration, row: str
) -> None:
    llm, reference = deepcopy(llm).double(), deepcopy(reference).double()  # in fp32 rounding differs from CPU to CPU
    ids, labels, lengths, prompt_lengths = laid_out(row)
    prompts, answers = texts()
    pad = torch.nn.utils.rnn.pad_sequence
    read, mask = pad(prompts, True, 0), pad([torch.ones_like(p) for p in prompts], True, 0)
    with torch.no_grad():
        expected = reference(
            inputs_embeds=reference.shared(read), attention_mask=mask, labels=pad(answers, True, IGNORE)
        )
        hidden = llm.hidden(llm.embed(ids), torch.zeros_like(ids), lengths, prompt_lengths)
        chosen = labels[:, 1:] != IGNORE
        logits = llm.logits(hidden[:, :-1][chosen])
    wanted = torch.cat([expected.logits[row, : len(answer)] for row, answer in enumerate(answers)])
    differences("T5ForConditionalGeneration", "logits, float64", logits, wanted, 1e-6, 1e-6)
    loss = functional.cross_entropy(logits, labels[:, 1:][chosen])
    differences("T5ForConditionalGeneration", "loss, float64", loss, expected.loss, 1e-7, 1e-7)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("beams", [1, 4])
def test_answers_equal_transformers(
    differences: Differences, llm: Seq2SeqLlm, reference: T5ForConditionalGeneration, beams: int, cached: bool
) -> None:
    prompts, _ = texts()
    rows = torch.nn.utils.rnn.pad_sequence([llm.embed(ids).detach() for ids in prompts], batch_first=True)
    embeds, mask = left_pad(rows, PROMPTS)
    tokenizer = TinyLlmConfig().load_tokenizer()
    sampling = Sampling(max_new_tokens=10, min_new_tokens=3, num_beams=beams, length_penalty=-1.0)
    answers = llm.generate(embeds, mask, tokenizer, sampling)
    for ids, answer in zip(prompts, answers, strict=True):
        alone = reference.generate(
            inputs_embeds=reference.shared(ids[None]), max_new_tokens=10, min_new_tokens=3, num_beams=beams,
            length_penalty=-1.0, do_sample=False, use_cache=cached,
        )  # fmt: skip
        said = tokenizer.decode(alone[0], skip_special_tokens=True).strip()
        differences.tokens("T5ForConditionalGeneration", "greedy and beam answers", answer, said)


def test_a_head_of_its_own_is_not_taken_from_the_embedding(folder: Path, llm: Seq2SeqLlm) -> None:
    saved = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in saved) == (not llm.model.config.scale_decoder_outputs)
    torch.testing.assert_close(llm.model.lm_head.weight, saved.get("lm_head.weight", saved["shared.weight"]))


def test_activation_of_the_published_code_takes_the_place_of_the_checkpoints(folder: Path) -> None:
    exact = Seq2SeqConfig(path=str(folder), dense_act_fn="gelu").build()
    for block in (*exact.model.encoder.block, *exact.model.decoder.block):
        act = block.layer[-1].DenseReluDense.act
        torch.testing.assert_close(act(torch.tensor(0.7)), functional.gelu(torch.tensor(0.7)))


def test_samples_without_an_answer_are_read_and_write_nothing(llm: Seq2SeqLlm) -> None:
    ids = torch.randint(3, 259, (1, 9))
    with torch.no_grad():
        hidden = llm.hidden(llm.embed(ids), torch.zeros_like(ids), ((4, 5),), ((4, 2),))
        none = llm.hidden(llm.embed(ids), torch.zeros_like(ids), ((4, 5),), ((4, 5),))
    assert hidden[0].abs().sum(1).bool().tolist() == [False] * 5 + [True] * 3 + [False]
    assert not none.any()


def test_published_sizes_need_no_file() -> None:
    config = Seq2SeqConfig(path="google/flan-t5-xl", dtype="bfloat16", dense_act_fn="gelu")
    assert (config.spec().width, config.spec().reads_apart) == (2048, True)
    with torch.device("meta"):
        model = config.empty().model
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == 2_849_757_184


def test_the_other_kind_of_model_is_refused(folder: Path, tmp_path: Path) -> None:
    TinyLlmConfig().build().model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="decoder only"):
        Seq2SeqConfig(path=str(tmp_path)).spec()
    with pytest.raises((ConfigError, ValueError)):
        CausalConfig(path=str(folder)).empty()
