"""The LLM wrapper: segments that cannot see each other, exact logits, batched generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from mmexp.errors import CheckpointError, ConfigError
from mmexp.llm import CausalConfig, Sampling, TinyLlmConfig
from mmexp.llm.causal import empty_llm

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "mistral with a window": lambda: transformers.MistralConfig(**SMALL, sliding_window=5),
    "phi3": lambda: transformers.Phi3Config(**SMALL),
    "granite": lambda: transformers.GraniteConfig(**SMALL, logits_scaling=2.0),
    "cohere": lambda: transformers.CohereConfig(**SMALL),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=5),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=100, bos_token_id=1, eos_token_id=2
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_segments_in_one_row_equal_separate_runs(family: str) -> None:
    torch.manual_seed(0)
    llm = empty_llm(FAMILIES[family]()).eval()
    ids = torch.randint(3, 100, (1, 17))
    positions = torch.cat([torch.arange(9), torch.arange(8)])[None]
    with torch.no_grad():
        together = llm.logits(llm.hidden(llm.embed(ids), positions, ((9, 8),)))
        llm.model.set_attn_implementation("eager")
        apart = torch.cat([llm.model(input_ids=part).logits for part in ids.split([9, 8], dim=1)], dim=1)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_padded_rows_equal_flat_ones() -> None:
    llm = TinyLlmConfig().build().eval()
    ids = torch.randint(3, 200, (2, 6))
    positions = torch.arange(6).expand(2, 6)
    with torch.no_grad():
        padded = llm.hidden(llm.embed(ids), positions, ((6,), (4,)))
        flat_ids = torch.cat([ids[0], ids[1, :4]])[None]
        flat_positions = torch.cat([torch.arange(6), torch.arange(4)])[None]
        flat = llm.hidden(llm.embed(flat_ids), flat_positions, ((6, 4),))
    torch.testing.assert_close(torch.cat([padded[0], padded[1, :4]]), flat[0])


def test_batched_generation_equals_one_by_one() -> None:
    llm, tokenizer = TinyLlmConfig().build().eval(), TinyLlmConfig().load_tokenizer()
    prompts = [torch.tensor(tokenizer(text).input_ids) for text in ("hello", "a longer prompt", "x")]
    longest = max(map(len, prompts))
    embeds, mask = torch.zeros(3, longest, 32), torch.zeros(3, longest, dtype=torch.long)
    for row, ids in enumerate(prompts):
        embeds[row, longest - len(ids) :] = llm.embed(ids).detach()
        mask[row, longest - len(ids) :] = 1
    sampling = Sampling(max_new_tokens=8)
    together = llm.generate(embeds, mask, tokenizer, sampling)
    alone = [
        llm.generate(llm.embed(ids[None]).detach(), torch.ones(1, len(ids), dtype=torch.long), tokenizer, sampling)[0]
        for ids in prompts
    ]
    assert together == alone


def test_generation_with_a_cache_equals_feeding_everything_again() -> None:
    llm, tokenizer = TinyLlmConfig().build().eval(), TinyLlmConfig().load_tokenizer()
    ids = torch.tensor([tokenizer("hello there").input_ids])
    embeds = llm.embed(ids).detach()
    generated = llm.model.generate(
        inputs_embeds=embeds, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
    )[0]
    with torch.no_grad():
        for token in generated:
            length = embeds.shape[1]
            logits = llm.logits(llm.hidden(embeds, torch.arange(length)[None], ((length,),))[0, -1])
            assert int(logits.argmax()) == int(token)
            embeds = torch.cat([embeds, llm.embed(token.view(1, 1))], dim=1)


def test_sampling_repeats_with_a_seed_and_streams_what_it_returns() -> None:
    llm, tokenizer = TinyLlmConfig().build().eval(), TinyLlmConfig().load_tokenizer()
    ids = torch.tensor([tokenizer("hello").input_ids])
    sampling = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=3)
    streamed: list[str] = []
    first = llm.generate(llm.embed(ids), torch.ones_like(ids), tokenizer, sampling, streamed.append)
    second = llm.generate(llm.embed(ids), torch.ones_like(ids), tokenizer, sampling)
    assert first == second
    assert "".join(streamed).replace("\ufffd", "").strip() in first[0] or first[0].startswith("".join(streamed).strip())


def test_local_folder_is_loaded_with_its_tokenizer(tmp_path: Path) -> None:
    llm = TinyLlmConfig().build()
    llm.model.save_pretrained(tmp_path)
    TinyLlmConfig().load_tokenizer().save_pretrained(tmp_path)
    config = CausalConfig(path=str(tmp_path))
    assert config.spec().width == 32
    assert config.load_tokenizer()("hi").input_ids == TinyLlmConfig().load_tokenizer()("hi").input_ids
    torch.testing.assert_close(config.build().model.lm_head.weight, llm.model.lm_head.weight)


def test_published_plan_needs_no_file() -> None:
    config = CausalConfig(path="lmsys/vicuna-7b-v1.5")
    assert (config.spec().width, config.spec().vocab_size) == (4096, 32000)
    with torch.device("meta"):
        module = config.empty()
    assert sum(p.numel() for p in module.parameters()) == 6_738_415_616


def test_unknown_hub_id_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ConfigError, CheckpointError), match=r"llm\.path"):
        CausalConfig(path="nobody/nothing-here").spec()


def test_attention_soft_capping_is_refused() -> None:
    with pytest.raises(ConfigError, match="caps its attention logits"):
        empty_llm(transformers.Gemma2Config(**SMALL, head_dim=8))


def test_encoder_decoder_is_refused() -> None:
    config = transformers.T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=50)
    with pytest.raises((ConfigError, ValueError)):
        empty_llm(config)


@pytest.mark.parametrize("family", ["mistral with a window", "gemma3"])
def test_a_window_holds_while_one_prompt_is_answered(family: str) -> None:
    torch.manual_seed(0)
    llm = empty_llm(FAMILIES[family]()).eval()
    embeds, settings = llm.embed(torch.randint(3, 100, (1, 11))), {"max_new_tokens": 8, "do_sample": False}
    mask = torch.ones(1, 11, dtype=torch.long)
    own = llm.model.generate(inputs_embeds=embeds, attention_mask=mask, **settings)
    llm.model.set_attn_implementation("eager")
    assert torch.equal(own, llm.model.generate(inputs_embeds=embeds, attention_mask=mask, **settings))
