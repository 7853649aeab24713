"""Norms, gated MLPs and rotary positions that make and keep less: same outputs to the bit, gradients up to rounding.

Written out in single operations, as transformers does it, RMSNorm keeps its input twice in another precision, a
gated MLP its gate before and after the activation, and rotary positions make five tensors of each query and key.
Known modules get a class that adds a backward pass of its own; weights, names and hooks stay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm

from mmexp.llm.attention import NAME, segment_attention, window_of
from mmexp.llm.rotary import rotate


def keep_less(model: nn.Module) -> int:
    """Changes every module of a known class, in place; their number."""
    count = 0
    for module in model.modules():
        if (lean := _KNOWN.get(type(module))) and _is_silu(module):
            module.__class__ = lean
            count += 1
    return count


def _is_silu(module: nn.Module) -> bool:
    """True for norms and attention, which have no activation, too."""
    activation = getattr(module, "act_fn", None)
    return activation is None or type(activation).__name__ in ("SiLU", "SiLUActivation")


class _LeanNorm(nn.Module):
    """Goes before LlamaRMSNorm and its copies."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(hidden_states)
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)


class _LeanMlp(nn.Module):
    """Goes before LlamaMLP and its copies."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(x)
        return self.down_proj(_Gated.apply(self.gate_proj(x), self.up_proj(x)))


class _LeanAttention(nn.Module):
    """Goes before LlamaAttention and its copies."""

    config: Any
    head_dim: int
    scaling: float
    attention_dropout: float
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        is_training = torch.is_grad_enabled() and past_key_values is None and self.config._attn_implementation == NAME
        if torch.compiler.is_compiling() or not is_training:
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        query, key, value = (
            project(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        mixed, _ = segment_attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            sliding_window=window_of(self),
            **kwargs,
        )
        return self.o_proj(mixed.flatten(2)), None


class _Norm(torch.autograd.Function):
    """RMSNorm; source: Zhang and Sennrich 2019, equation 4."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        normed = (wide * scale).to(x.dtype)
        return normed.mul_(weight) if normed.dtype == weight.dtype else weight * normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        normed, d_weight = x.float() * scale, None
        if ctx.needs_input_grad[1]:
            d_weight = (grads[0] * normed.to(x.dtype)).flatten(0, -2).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        d_normed = (grads[0] * weight).float()
        shared = (d_normed * normed).mean(-1, keepdim=True)
        return d_normed.sub_(normed.mul_(shared)).mul_(scale).to(x.dtype), d_weight, None


class _Gated(torch.autograd.Function):
    """SiLU of the gate times the other branch; source: Shazeer 2020, GLU Variants Improve Transformer, equation 6."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_gate = grads[0] * up
        torch.ops.aten.silu_backward.grad_input(d_gate, gate, grad_input=d_gate)
        return d_gate, functional.silu(gate).mul_(grads[0])


class _LlamaRMSNorm(_LeanNorm, LlamaRMSNorm): ...


class _MistralRMSNorm(_LeanNorm, MistralRMSNorm): ...


class _Qwen2RMSNorm(_LeanNorm, Qwen2RMSNorm): ...


class _LlamaMLP(_LeanMlp, LlamaMLP): ...


class _MistralMLP(_LeanMlp, MistralMLP): ...


class _Qwen2MLP(_LeanMlp, Qwen2MLP): ...


class _LlamaAttention(_LeanAttention, LlamaAttention): ...


class _MistralAttention(_LeanAttention, MistralAttention): ...


class _Qwen2Attention(_LeanAttention, Qwen2Attention): ...


_KNOWN: dict[type, type] = {
    LlamaRMSNorm: _LlamaRMSNorm,
    MistralRMSNorm: _MistralRMSNorm,
    Qwen2RMSNorm: _Qwen2RMSNorm,
    LlamaAttention: _LlamaAttention,
    MistralAttention: _MistralAttention,
    Qwen2Attention: _Qwen2Attention,
    LlamaMLP: _LlamaMLP,
    MistralMLP: _MistralMLP,
    Qwen2MLP: _Qwen2MLP,
}
