"""What a decoder-only LLM does inside while it answers: attention to the slots, hidden states of the slots.

Fused kernels return no attention weights, so the pass that is looked at runs with transformers' eager attention, whose
weights are taken up layer by layer; the answer itself comes from the attention that evaluation and chat use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmexp.errors import ConfigError
from mmexp.llm import CausalLlm

if TYPE_CHECKING:
    from torch import Tensor, nn

_LAYERS = ("layers", "h")
_TAIL = ("norm", "final_layer_norm", "ln_f", "final_layernorm", "project_out")
"""Names that decoders of transformers give to what stands behind their last layer, in the order of the calls."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One pass over a prompt and its answer."""

    attention: Tensor
    """float32[A, layers, heads, K]: of each row that was asked for, how much it takes from each of K slots. The rest up
    to 1 is text."""
    hidden: Tensor
    """float[layers + 1, K, D] of the slots: what goes into the first layer, and what each layer gives"""


def require_causal(llm: Any) -> CausalLlm:
    """The LLM, where its attention can be looked at.

    Raises:
        ConfigError: it is no decoder-only model.
    """
    if not isinstance(llm, CausalLlm):
        raise ConfigError(f"{type(llm).__name__} cannot be looked into", expected="an LLM of transformers (CausalLlm)",
                          where="run.llm")  # fmt: skip
    return llm


@torch.no_grad()
def greedy_ids(
    llm: CausalLlm, embeds: Tensor, max_new_tokens: int, is_over: Callable[[Sequence[int]], bool]
) -> list[int]:
    """The likeliest answer to one prompt, float[1, T, D], as the ids that were chosen, the last one included.

    Args:
        llm: In eval mode.
        embeds: The prompt, soft tokens in their slots.
        max_new_tokens: Longest answer, at least 1.
        is_over: Whether the ids so far end the answer.
    """
    decoder, ids, cache, step = llm.model.get_decoder(), list[int](), None, embeds
    while len(ids) < max_new_tokens:
        seen = torch.ones(1, embeds.shape[1] + len(ids), dtype=torch.long, device=embeds.device)
        out = decoder(inputs_embeds=step, attention_mask=seen, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        ids.append(int(llm.logits(out.last_hidden_state[:, -1]).argmax()))
        if is_over(ids):
            break
        step = llm.embed(torch.tensor([ids[-1:]], device=embeds.device))
    return ids


@torch.no_grad()
def trace(llm: CausalLlm, embeds: Tensor, rows: Tensor, slots: Tensor) -> Trace:
    """Runs one text, float[1, T, D], once.

    Args:
        llm: In eval mode.
        embeds: The text, soft tokens in their slots.
        rows: int64[A], the positions whose attention is wanted.
        slots: int64[K], the positions it is wanted to, and whose hidden states are.

    Raises:
        ConfigError: the architecture does not show its attention, or has another end than is known here.
    """
    decoder = llm.model.get_decoder()
    layers = _layers(decoder)
    weights: dict[int, Tensor] = {}
    states: list[Tensor] = []

    def keep_weights(index: int, output: Any) -> None:
        found = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(found, torch.Tensor) and found.dim() == 4:
            weights[index] = found[0][:, rows][..., slots].float().cpu()

    with _eager(llm.model), ExitStack() as stack:
        stack.enter_context(_hooked(layers[0], before=lambda inputs: states.append(inputs)))
        for index, layer in enumerate(layers):
            for child in layer.children():
                stack.enter_context(_hooked(child, after=lambda output, at=index: keep_weights(at, output)))
            stack.enter_context(_hooked(layer, after=lambda output: states.append(_first(output))))
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        last = decoder(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state
    if len(weights) != len(layers):
        raise _unknown(llm, f"{len(weights)} of {len(layers)} layers show their attention")
    if not torch.allclose(tail(decoder, states[-1]).float(), last.float(), rtol=1e-3, atol=1e-3):
        raise _unknown(llm, "what stands behind the last layer is not known")
    attention = torch.stack([weights[index] for index in range(len(layers))])
    return Trace(attention=attention.permute(2, 0, 1, 3), hidden=torch.stack([state[0, slots] for state in states]))


def tail(decoder: Any, hidden: Tensor) -> Tensor:
    """What a decoder does with the hidden states behind its last layer: float[..., D] to float[..., D]."""
    for name in _TAIL:
        module = getattr(decoder, name, None)
        hidden = hidden if module is None else module(hidden)
    return hidden


def _layers(decoder: Any) -> list[nn.Module]:
    found = next((getattr(decoder, name) for name in _LAYERS if hasattr(decoder, name)), None)
    if found is None:
        raise ConfigError(f"the layers of {type(decoder).__name__} are not found", where="run",
                          expected=f"a decoder with {' or '.join(_LAYERS)}")  # fmt: skip
    return list(found)


def _unknown(llm: CausalLlm, what: str) -> ConfigError:
    return ConfigError(f"{llm.model.config.model_type}: {what}", where="run",
                       expected="a decoder of transformers as Llama, Qwen, Mistral, OPT or GPT-2 are")  # fmt: skip


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """The model with attention that returns its weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _hooked(
    module: nn.Module, before: Callable[[Tensor], None] | None = None, after: Callable[[Any], None] | None = None
) -> Iterator[None]:
    """Tells what goes into a module first, and what comes out of it."""

    def tell_before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if before is not None:
            before(args[0] if args else kwargs["hidden_states"])

    def tell_after(_: nn.Module, __: tuple, output: Any) -> None:
        if after is not None:
            after(output)

    handles = [module.register_forward_pre_hook(tell_before, with_kwargs=True),
               module.register_forward_hook(tell_after)]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
