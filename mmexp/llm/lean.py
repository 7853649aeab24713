"""Norms and gated MLPs that keep less for the backward pass: same outputs to the bit, gradients equal up to rounding.

Written out in single operations, as transformers does it, RMSNorm keeps its input twice in another precision, and a
gated MLP its gate before and after the activation. Modules whose code is Llama's, instruction by instruction (Mistral,
Qwen, Granite and others are copies of it), get a class that adds a backward pass of its own; weights, names and hooks
stay.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm


def keep_less(model: nn.Module) -> int:
    """Changes every module that is known, in place; their number."""
    count = 0
    for module in model.modules():
        if (lean := _lean(type(module))) and lean.is_for(module):
            module.__class__ = lean
            count += 1
    return count


@cache
def _lean(kind: type) -> Any:
    """The class for modules of `kind`; None where its code is not known."""
    for known, ours in ((LlamaRMSNorm, _LeanNorm), (LlamaMLP, _LeanMlp)):
        if not issubclass(kind, ours) and _same_code(kind, known):
            return type(kind.__name__, (ours, kind), {})
    return None


def _same_code(one: type, other: type) -> bool:
    codes = [getattr(kind.forward, "__code__", None) for kind in (one, other)]
    return None not in codes and len({(code.co_code, code.co_names, code.co_consts) for code in codes if code}) == 1


class _LeanNorm(nn.Module):
    """Mixed into a copy of LlamaRMSNorm."""

    weight: nn.Parameter
    variance_epsilon: float

    @staticmethod
    def is_for(module: nn.Module) -> bool:
        return True

    def forward(self, hidden_states: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(hidden_states)
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)


class _LeanMlp(nn.Module):
    """Mixed into a copy of LlamaMLP."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    @staticmethod
    def is_for(module: nn.Module) -> bool:
        return isinstance(module.act_fn, nn.SiLU) or type(module.act_fn).__name__ == "SiLUActivation"

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(x)
        return self.down_proj(_Gated.apply(self.gate_proj(x), self.up_proj(x)))


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
        d_gate = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return d_gate, functional.silu(gate).mul_(grads[0])
