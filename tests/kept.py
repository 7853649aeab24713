"""What a model keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def backward_of(
    model: Any, output_of: Callable[[Any], Tensor], loss_of: Callable[[Tensor], Tensor], low: bool
) -> tuple[Tensor, dict[str, Tensor], int]:
    """The output, the gradient of every weight, and the bytes kept for the backward pass besides weights."""
    kept: dict[int, int] = {}
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autocast("cpu", torch.bfloat16, enabled=low), torch.autograd.graph.saved_tensors_hooks(keep, keep):
        output = output_of(model)
        loss = loss_of(output.float())
    total = sum(kept.values())
    loss.backward()
    return output.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, total
