"""Segments that go on from a common beginning, against each text on its own: hidden states and gradients."""

from __future__ import annotations

import pytest
import torch
import transformers

from mmexp.llm.causal import CausalLlm
from mmexp.llm.checkpoint import spec_of
from mmexp.llm.spans import Span, Spans
from tests.llm.test_causal import SMALL
from tests.llm.test_last_layer import KNOWN, OTHERS, build

SHARING = {**KNOWN, "phi3": OTHERS["phi3"]}
LENGTHS, FOLLOWERS = ((4, 6, 3, 1, 5, 2, 2, 2),), ((0, 3, 0, 0, 0, 1, 0, 0),)
"""A text of 4, three that begin with the same 6, one of 5, one of 2 + 2 that is alone with its beginning, one of 2."""
TEXTS = ([0, 1, 2, 3], *[[4, 5, 6, 7, 8, 9, *own] for own in ([10, 11, 12], [13], [14, 15, 16, 17, 18])],
         [19, 20, 21, 22], [23, 24])  # fmt: skip


def positions() -> torch.Tensor:
    found = torch.zeros(25, dtype=torch.long)
    for text in TEXTS:
        found[text] = torch.arange(len(text))
    return found[None]


def together(llm: CausalLlm, embeds: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Hidden states of the end of the beginning and of the rest, once for each text."""
    wanted = torch.tensor(sorted(place for text in TEXTS for place in text[-2:]))
    hidden = llm.hidden(embeds, positions(), LENGTHS, rows=wanted if rows is not None else None, followers=FOLLOWERS)
    return hidden if rows is not None else hidden[0, wanted]


def apart(llm: CausalLlm, embeds: torch.Tensor) -> torch.Tensor:
    found = []
    for text in TEXTS:
        own = llm.hidden(embeds[:, text], torch.arange(len(text))[None], ((len(text),),))[0, -2:]
        found += zip(text[-2:], own, strict=True)
    return torch.stack([state for _, state in sorted(found, key=lambda each: each[0])])


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("family", [name for name in SHARING if "window" not in name])
def test_texts_with_one_beginning_are_what_they_are_alone(family: str, pruned: bool) -> None:
    llm = build(SHARING[family]())
    assert llm.shares_beginnings
    torch.manual_seed(1)
    values = torch.randn(1, 25, llm.model.get_input_embeddings().embedding_dim)
    results = []
    for work in (lambda embeds: together(llm, embeds, torch.tensor([0]) if pruned else None),
                 lambda embeds: apart(llm, embeds)):  # fmt: skip
        embeds = values.clone().requires_grad_()
        llm.zero_grad()
        hidden = work(embeds)
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        assert embeds.grad is not None
        grads = {name: weight.grad.clone() for name, weight in llm.named_parameters() if weight.grad is not None}
        results.append((hidden.detach(), grads | {"embeds": embeds.grad}))
    (ours, grads), (plain, wanted) = results
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-5 * float(1 + grad.abs().max()), rtol=1e-5, msg=name)


def test_another_text_does_not_matter() -> None:
    llm = build(KNOWN["llama"]())
    embeds = torch.randn(1, 25, 32)
    before = llm.hidden(embeds, positions(), LENGTHS, followers=FOLLOWERS)
    embeds[:, 13] += 1  # all of the second text that is its own
    after = llm.hidden(embeds, positions(), LENGTHS, followers=FOLLOWERS)
    changed = (before - after).abs().amax(-1)[0] > 0
    assert changed.nonzero().flatten().tolist() == [13]


def test_spans_of_rows() -> None:
    spans = Spans(((2, 3, 1, 2), (4,)), 9, ((0, 2, 0, 0), (0,)))
    assert spans.rows == ((Span(2), Span(3), Span(3, (1, 2), 3)), (Span(4),))
    assert spans.sizes == [2, 3, 3, 1, 4, 5]
    assert spans.have_branches
    assert not Spans(((2, 3),), 5).have_branches
    mask = spans.mask(spans.rows[0][2], torch.device("cpu"))
    assert mask.int().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 1]]


def test_who_shares() -> None:
    assert spec_of(transformers.LlamaConfig(**SMALL)).shares_beginnings
    assert not spec_of(transformers.MistralConfig(**SMALL, sliding_window=5)).shares_beginnings
    assert not spec_of(transformers.T5Config()).shares_beginnings
