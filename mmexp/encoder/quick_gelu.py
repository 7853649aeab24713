"""CLIP's activation with a backward pass of its own: same outputs to the bit, gradients equal up to rounding.

Written out in single operations, as transformers does it, it makes three tensors of the MLP's width, and keeps two
besides its output for the backward pass. This makes one, and keeps its input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SLOPE = 1.702


def quick_gelu(x: Tensor) -> Tensor:
    """x times the sigmoid of 1.702 x; source: Hendrycks and Gimpel 2016, Gaussian Error Linear Units, section 2."""
    if torch.compiler.is_compiling():  # fuses single operations
        return x * torch.sigmoid(_SLOPE * x)
    return _QuickGelu.apply(x) if torch.is_grad_enabled() else _gate(x).mul_(x)


class QuickGelu(nn.Module):
    """`quick_gelu` in the place of a library's module."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


def replace_quick_gelu(model: nn.Module) -> int:
    """Puts it in the place of every QuickGELU of transformers; their number."""
    from transformers.activations import QuickGELUActivation

    found = [(parent, name) for parent in model.modules() for name, child in parent.named_children()
             if type(child) is QuickGELUActivation]  # fmt: skip
    for parent, name in found:
        setattr(parent, name, QuickGelu())
    return len(found)


def _gate(x: Tensor) -> Tensor:
    return (_SLOPE * x).sigmoid_()


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _gate(x).mul_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = _gate(x)
        slope = (1 - gate).mul_(x).mul_(_SLOPE).add_(1).mul_(gate)  # s + 1.702 x s (1 - s)
        return slope.mul_(grads[0])
