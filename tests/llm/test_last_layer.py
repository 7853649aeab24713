"""The last layer at used positions only, against all of it: hidden states and gradients, of every weight too."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import transformers
from torch._dynamo.testing import CompileCounter
from transformers import PretrainedConfig

from mmexp.llm import TinyLlmConfig
from mmexp.llm.causal import CausalLlm, empty_llm
from mmexp.tuning.lora import LoraSettings, add_lora
from tests.llm.test_causal import SMALL

OPT = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
       "max_position_embeddings": 40, "dropout": 0.0}  # fmt: skip
KNOWN: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "llama with biases": lambda: transformers.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen2 with a window": lambda: transformers.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "mistral with a window": lambda: transformers.MistralConfig(**SMALL, sliding_window=5),
    "opt": lambda: transformers.OPTConfig(**OPT),
    "opt, norm behind": lambda: transformers.OPTConfig(**OPT, do_layer_norm_before=False, word_embed_proj_dim=16),
}
OTHERS: dict[str, Callable[[], PretrainedConfig]] = {
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=5),
    "phi3": lambda: transformers.Phi3Config(**SMALL),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=100, attn_pdrop=0, resid_pdrop=0
    ),
    "opt with layer drop": lambda: transformers.OPTConfig(**OPT, layerdrop=0.5),
}
LAYOUTS = {
    "flat": (((9, 8, 3),), [6, 7, 12, 15, 16]),  # the last segment uses nothing
    "padded": (((9,), (5,)), [2, 8, 9, 13]),
    "packed": (((4, 5), (3,)), [0, 3, 4, 9, 11]),
    "all": (((9, 8),), list(range(17))),
    "none": (((9, 8),), []),
}


def build(config: PretrainedConfig) -> CausalLlm:
    torch.manual_seed(0)
    llm = empty_llm(config).train()
    for weight in llm.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.15)
    return llm


def run(llm: CausalLlm, layout: str, pruned: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Hidden states of used positions and gradients of a sum over them."""
    lengths, used = LAYOUTS[layout]
    rows, columns = torch.tensor(used, dtype=torch.long), max(map(sum, lengths))
    positions = torch.zeros(len(lengths), columns, dtype=torch.long)
    for row, own in enumerate(lengths):
        positions[row, : sum(own)] = torch.cat([torch.arange(length) for length in own])
    torch.manual_seed(1)
    width = llm.model.get_input_embeddings().embedding_dim
    embeds = torch.randn(len(lengths), columns, width, requires_grad=True)
    llm.zero_grad()
    if pruned:
        hidden = llm.hidden(embeds, positions, lengths, rows=rows)
    else:
        hidden = llm.hidden(embeds, positions, lengths).flatten(0, 1)[rows]
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    assert embeds.grad is not None
    grads = {name: weight.grad for name, weight in llm.named_parameters() if weight.grad is not None}
    return hidden.detach(), {name: grad.clone() for name, grad in grads.items()} | {"embeds": embeds.grad}


def same(llm: CausalLlm, layout: str) -> None:
    ours, grads = run(llm, layout, pruned=True)
    plain, wanted = run(llm, layout, pruned=False)
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-6 * float(1 + grad.abs().max()), rtol=1e-6, msg=name)


def last_inputs(llm: CausalLlm, layout: str) -> int:
    """Positions that go through the MLP of the last layer."""
    seen = []
    layer = llm.model.get_decoder().layers[-1]
    inner = layer.mlp if hasattr(layer, "mlp") else layer.fc1
    hook = inner.register_forward_pre_hook(lambda module, values: seen.append(values[0].numel() // 32))
    run(llm, layout, pruned=True)
    hook.remove()
    return sum(seen)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", KNOWN)
def test_known_decoders_give_the_same_with_less(family: str, layout: str) -> None:
    llm = build(KNOWN[family]())
    same(llm, layout)
    lengths, used = LAYOUTS[layout]
    assert last_inputs(llm, layout) == (len(used) or len(lengths) * max(map(sum, lengths)))


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("family", OTHERS)
def test_other_decoders_go_the_long_way(family: str, layout: str) -> None:
    torch.manual_seed(0)
    llm = empty_llm(OTHERS[family]()).eval()
    same(llm, layout)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_are_those_of_used_positions(reentrant: bool) -> None:
    llm = build(KNOWN["llama"]())
    _, plain = run(llm, "flat", pruned=False)
    llm.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert last_inputs(llm, "flat") == 2 * 5
    _, grads = run(llm, "flat", pruned=True)
    for name, grad in plain.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-6 * float(1 + grad.abs().max()), rtol=1e-6)


def test_adapters_train_and_a_frozen_layer_does_not() -> None:
    llm = build(KNOWN["qwen2"]())
    assert not add_lora(llm, LoraSettings(rank=2, alpha=2, dropout=0.0), "llm")
    for name, weight in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    same(llm, "flat")
    assert last_inputs(llm, "flat") == 5


def test_names_of_weights_copies_and_generation_stay() -> None:
    llm = TinyLlmConfig().build().eval()
    plain = transformers.LlamaForCausalLM(llm.model.config).eval()
    plain.load_state_dict(llm.model.state_dict())
    ids = torch.tensor([[5, 9, 30]])
    wanted = plain.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    for model in (llm.model, copy.deepcopy(llm).model):
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), wanted)


def test_a_compiled_block_takes_other_segments_without_being_compiled_again() -> None:
    torch.manual_seed(0)
    plain, compiled = (empty_llm(transformers.LlamaConfig(**SMALL)) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    counter, counts = CompileCounter(), []
    for block in compiled.model.get_decoder().layers:
        block.compile(backend=counter)
    embeds = torch.randn(1, 16, SMALL["hidden_size"])
    for lengths in ([10, 6], [4, 4, 8], [16], [1, 2, 3, 4, 6]):
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        rows = torch.tensor([3, 7, 15])
        found = compiled.hidden(embeds, positions, [lengths], rows=rows)
        torch.testing.assert_close(found, plain.hidden(embeds, positions, [lengths], rows=rows))
        counts.append(counter.frame_count)
    assert counts[0] > 0
    assert counts[1:] == [counts[0]] * 3
