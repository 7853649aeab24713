"""In which precision weights rest: what trains in float32, frozen matrices in what a run computes in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd


def widen_trained(module: nn.Module) -> int:
    """Makes what trains float32, in place, however its part is stored; returns how many weights that changed.

    In 16 bit, an update below 1/256 of a weight rounds to nothing. Adapters take the precision of the layer under them,
    so on an LLM in bfloat16 they would be lost to that.
    """
    widened = 0
    for weight in module.parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            weight.data = weight.data.float()
            widened += weight.numel()
    return widened


def store_frozen(parts: Mapping[str, nn.Module], dtype: torch.dtype, keep: Mapping[str, Collection[str]]) -> int:
    """Stores frozen float32 weights of linear and convolution layers as `dtype`, in place.

    Autocast would cast exactly these in every step, so under it results are bit-equal. Norms, tables and heads that
    share a table stay as they are, since autocast leaves their precision alone.

    Args:
        parts: Parts by name, after the policy was applied.
        dtype: The dtype of autocast.
        keep: Per part names of tensors that stay as they are, for a run hands them on.

    Returns:
        How many bytes are free now.
    """
    freed = 0
    for part, module in parts.items():
        tables = {id(each.weight) for each in module.modules() if isinstance(each, nn.Embedding)}
        for name, layer in module.named_modules():
            if not isinstance(layer, nn.Linear | _ConvNd):
                continue
            for key, weight in layer.named_parameters(recurse=False):
                kept = f"{name}.{key}".replace(".base_layer.", ".") in keep.get(part, ())
                fits = key in ("weight", "bias") and weight.dtype == torch.float32 and not weight.requires_grad
                if fits and not kept and id(weight) not in tables:
                    weight.data = weight.data.to(dtype)
                    freed += weight.numel() * (4 - dtype.itemsize)
    return freed
