"""The attention that is shown is the one transformers gives, for every family, and looking changes nothing."""

from __future__ import annotations

import pytest
import torch
import transformers

from mmexp.errors import ConfigError
from mmexp.inspection.lens import by_embedding, by_head
from mmexp.inspection.trace import greedy_ids, require_causal, tail, trace
from mmexp.llm import Sampling, TinyLlmConfig
from mmexp.llm.causal import CausalLlm, empty_llm
from tests.llm.test_causal import FAMILIES

OPT = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
       "vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 1}  # fmt: skip
ALL = {
    **FAMILIES,
    "opt": lambda: transformers.OPTConfig(**OPT),
    "opt with projections": lambda: transformers.OPTConfig(**{**OPT, "word_embed_proj_dim": 16}),
}
ROWS, SLOTS = torch.tensor([8, 9, 10]), torch.tensor([1, 2, 3, 4, 5])


def make(family: str) -> tuple[CausalLlm, torch.Tensor]:
    """An LLM with random weights and 11 embeddings."""
    torch.manual_seed(0)
    llm = empty_llm(ALL[family]()).eval()
    return llm, llm.embed(torch.randint(3, 100, (1, 11)))


@pytest.mark.parametrize("family", ALL)
def test_attention_and_states_are_those_of_transformers(family: str) -> None:
    llm, embeds = make(family)
    found = trace(llm, embeds, ROWS, SLOTS)
    llm.model.set_attn_implementation("eager")
    with torch.no_grad():
        asked = llm.model.get_decoder()(inputs_embeds=embeds, output_attentions=True, output_hidden_states=True)
    for layer, weights in enumerate(asked.attentions):
        torch.testing.assert_close(found.attention[:, layer], weights[0][:, ROWS][..., SLOTS].transpose(0, 1))
    for layer, states in enumerate(asked.hidden_states[:-1]):
        torch.testing.assert_close(found.hidden[layer], states[0, SLOTS])
    shown = tail(llm.model.get_decoder(), found.hidden[-1])
    torch.testing.assert_close(shown, asked.last_hidden_state[0, SLOTS], rtol=1e-4, atol=1e-5)


def test_a_window_hides_slots() -> None:
    llm, embeds = make("mistral with a window")  # of 5 positions
    assert trace(llm, embeds, ROWS, SLOTS).attention[2].abs().max() == 0
    assert trace(llm, embeds, torch.tensor([6]), SLOTS).attention.sum() > 0


def test_looking_changes_nothing() -> None:
    llm, embeds = make("llama")
    before, implementation = llm.hidden(embeds, torch.arange(11)[None], ((11,),)), llm.model.config._attn_implementation
    trace(llm, embeds, ROWS, SLOTS)
    assert llm.model.config._attn_implementation == implementation
    assert torch.equal(llm.hidden(embeds, torch.arange(11)[None], ((11,),)), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llm.modules())


def test_a_decoder_with_another_end_is_refused() -> None:
    llm, embeds = make("llama")
    decoder = llm.model.get_decoder()
    decoder.register_forward_hook(lambda _, __, out: type(out)(last_hidden_state=out.last_hidden_state * 2))
    with pytest.raises(ConfigError, match="what stands behind the last layer is not known"):
        trace(llm, embeds, ROWS, SLOTS)


@pytest.mark.parametrize("family", ["llama", "mistral with a window", "gemma3", "opt", "gpt2"])
def test_the_answer_is_that_of_generation(family: str) -> None:
    llm, embeds = make(family)
    ids = greedy_ids(llm, embeds, 8, lambda found: found[-1] == 2)
    tokenizer = TinyLlmConfig().load_tokenizer()
    said = llm.generate(embeds, torch.ones(1, 11, dtype=torch.long), tokenizer, Sampling(max_new_tokens=8))
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == said[0]
    assert len(ids) == 8 or ids[-1] == 2


def test_words_are_those_of_head_and_table() -> None:
    llm, _ = make("llama")
    table = llm.model.get_input_embeddings().weight.detach()
    near = by_embedding(llm, 3 * table[40:45], 100, 4)
    assert near.ids[:, 0].tolist() == [40, 41, 42, 43, 44]
    torch.testing.assert_close(near.values[:, 0], torch.ones(5))
    hidden = torch.randn(70, 32)
    with torch.no_grad():
        expected = llm.model.lm_head(llm.model.model.norm(hidden))[:, :90].softmax(-1).topk(4)
    found = by_head(llm, hidden, 90, 4)
    assert torch.equal(found.ids, expected.indices)
    torch.testing.assert_close(found.values, expected.values)


def test_another_llm_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear cannot be looked into"):
        require_causal(torch.nn.Linear(2, 2))
