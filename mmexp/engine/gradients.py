"""Gradients of a step: their norms, as a whole and of each part, and clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class GradNorms:
    """Gradient norms of one step before clipping; inf or nan where a gradient is not finite."""

    total: float
    each: Sequence[tuple[nn.Parameter, Tensor]]
    """Of every parameter that has a gradient. Where gradients are shards, so are these."""

    def of_parts(self, parts: Mapping[str, nn.Module]) -> dict[str, float]:
        """The norm over each part that has gradients; a tensor of two parts counts for the first. It is computed when
        asked for, in most steps never. Where gradients are shards, all processes must ask."""
        part_of = {id(p): name for name, part in reversed(list(parts.items())) for p in part.parameters()}
        grouped: dict[str, list[Tensor]] = {name: [] for name in parts}
        for parameter, norm in self.each:
            grouped[part_of[id(parameter)]].append(norm)
        return {name: _number(_combined(norms)) for name, norms in grouped.items() if norms}


def clip(parameters: Sequence[nn.Parameter], max_norm: float | None) -> GradNorms:
    """Clips the gradients to a total norm, bit for bit as `torch.nn.utils.clip_grad_norm_`; None only looks."""
    having = [parameter for parameter in parameters if parameter.grad is not None]
    if not having:
        return GradNorms(total=0.0, each=())
    gradients: Any = [parameter.grad for parameter in having]
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
    total = _combined(norms)
    torch.nn.utils.clip_grads_with_norm_(having, math.inf if max_norm is None else max_norm, total)
    return GradNorms(total=_number(total), each=tuple(zip(having, norms, strict=True)))


def _combined(norms: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def _number(norm: Any) -> float:
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
