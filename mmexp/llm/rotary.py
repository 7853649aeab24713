"""Rotary positions: what transformers computes, to the bit, with a third of its tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import rotate_half


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys turned by their positions; source: Su et al. 2021, RoFormer, equation 34, in halves.

    Args:
        x: float[B, heads, T, head width]
        cos: float[B, T, head width], whose two halves are equal, as every kind of them in transformers is; `sin` alike.

    Returns:
        As `x`, in the wider precision of `x` and `cos`.
    """
    if torch.compiler.is_compiling():  # which fuses the plain formula
        return x * cos[:, None] + rotate_half(x) * sin[:, None]
    half = x.shape[-1] // 2
    found: Tensor = _Rotated.apply(x, cos[:, None, :, :half], sin[:, None, :, :half])
    return found


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return _turn(x, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _turn(grads[0], *ctx.saved_tensors, back=True).to(ctx.dtype), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    made = torch.empty_like(x, dtype=torch.result_type(x, cos))
    (first, second), (one, two) = x.chunk(2, -1), made.chunk(2, -1)
    torch.mul(first, cos, out=one)
    torch.mul(second, cos, out=two)
    product = second * sin
    one.add_(product) if back else one.sub_(product)
    torch.mul(first, sin, out=product)
    two.sub_(product) if back else two.add_(product)
    return made
