"""An int8 layer that keeps nothing of what came in. It imports bitsandbytes: only a quantised LLM may import it."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear8bitLt


class FrozenLinear8bitLt(Linear8bitLt):
    """The library's own layer keeps its input until backward although a frozen weight needs none: 1.5 MB a token of a
    7B LLM, as an attribute, out of reach of recomputation. This one keeps the dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        return _FrozenProduct.apply(x, super().forward, self.state)


class _FrozenProduct(torch.autograd.Function):
    """A product with a frozen int8 weight, whose gradient is that of the weight as it is stored.

    Source: Dettmers et al. 2022, LLM.int8(), section 2 (a row's scale is its largest value, 127 stands for it).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, product: Any, state: Any) -> torch.Tensor:
        ctx.state, ctx.dtype = state, x.dtype
        return product(x)  # in here autograd records nothing

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        state = ctx.state
        weight = state.CB.to(ctx.dtype).mul_(state.SCB[:, None] * (1 / 127))
        return grads[0].to(ctx.dtype) @ weight, None, None
