"""Rows for new tokens: where they stand, what they start from, and that the old table stays as it is."""

from __future__ import annotations

import pytest
import torch
import transformers

from mmexp.errors import ConfigError
from mmexp.llm import CausalLlm, Sampling, TinyLlmConfig, new_rows
from mmexp.llm.causal import empty_llm
from tests.llm.test_causal import SMALL


def grown(tied: bool, first: int, count: int) -> tuple[CausalLlm, torch.Tensor]:
    """A small Qwen2 of 100 rows with new tokens, and the table it had."""
    torch.manual_seed(0)
    llm = empty_llm(transformers.Qwen2Config(**SMALL, tie_word_embeddings=tied)).eval()
    table = llm.model.get_input_embeddings().weight.detach().clone()
    llm.add_tokens(first, count)
    return llm, table


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("first", "count", "width"), [(100, 3, 103), (97, 2, 100), (98, 5, 103)])
def test_new_ids_look_up_new_rows_and_old_ones_old_rows(tied: bool, first: int, count: int, width: int) -> None:
    llm, table = grown(tied, first, count)
    rows = new_rows(llm)
    assert len(rows) == (1 if tied else 2)
    torch.testing.assert_close(rows[0], table[:first].mean(0).expand(count, -1))
    with torch.no_grad():
        rows[0] += torch.randn_like(rows[0])
        embeds = llm.embed(torch.arange(width)[None])[0]
        logits = llm.logits(torch.eye(32))
        head = llm.model.get_output_embeddings()
    assert torch.equal(embeds[:first], table[:first])
    assert torch.equal(embeds[first : first + count], rows[0])
    assert torch.equal(embeds[first + count :], table[first + count :])
    assert logits.shape == (32, width)
    torch.testing.assert_close(logits[:, first : first + count], head.rows.T)
    torch.testing.assert_close(logits[:, :first], head.weight[:first].T)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_new_token_can_be_said(beams: int) -> None:
    llm, _ = grown(tied=False, first=100, count=2)
    tokenizer = TinyLlmConfig().load_tokenizer()
    tokenizer.add_tokens(["<new>"], special_tokens=False)
    with torch.no_grad():
        llm.model.get_output_embeddings().rows[1] = 50 * llm.model.model.norm.weight.sign()
        llm.model.get_output_embeddings().rows[0] = -llm.model.get_output_embeddings().rows[1]
    embeds = llm.embed(torch.tensor([[5, 101, 7]])).detach()
    answer = llm.model.generate(inputs_embeds=embeds, max_new_tokens=3, num_beams=beams, do_sample=False)
    assert {100, 101} & set(answer[0].tolist())
    assert llm.generate(embeds, torch.ones(1, 3, dtype=torch.long), tokenizer, Sampling(max_new_tokens=3))


def test_low_precision_tables_get_rows_that_can_train() -> None:
    llm = empty_llm(transformers.LlamaConfig(**SMALL), torch.bfloat16)
    llm.add_tokens(100, 2)
    assert {rows.dtype for rows in new_rows(llm)} == {torch.float32}
    assert llm.embed(torch.tensor([[5, 101]])).dtype == llm.logits(torch.ones(1, 32, dtype=torch.bfloat16)).dtype


def test_a_table_that_does_more_than_look_up_is_refused() -> None:
    llm = empty_llm(transformers.Gemma3TextConfig(**SMALL, head_dim=8))
    with pytest.raises(ConfigError, match="ScaledWordEmbedding"):
        llm.add_tokens(100, 1)
