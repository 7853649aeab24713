"""From hidden states to logits, and to their cross-entropy without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mmexp.llm.attention import compute_dtype
from mmexp.llm.rows import GrownHead


@dataclass(frozen=True, kw_only=True)
class Head:
    """How an LLM makes logits: a linear layer, and what its architecture does to each of them."""

    linear: Any
    """The output layer, as transformers has it (it may be wrapped, quantised or adapted)."""
    scale: float = 1.0
    """Factor of every logit (Granite, Cohere, T5)."""
    cap: float | None = None
    """Logits go through `cap * tanh(logit / cap)` (Gemma); None leaves them."""

    def logits(self, hidden: Tensor) -> Tensor:
        """float[..., D] to float[..., V]."""
        logits = self.linear(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def loss(self, hidden: Tensor, labels: Tensor, chunk_rows: int | None) -> Tensor:
        """Cross-entropy in float32, summed over K positions.

        With `chunk_rows`, logits exist for that many positions at a time, and gradients with respect to hidden states
        and trained weights are made in the forward pass; the backward pass only scales them, so it can run once. A head
        that is not a plain linear layer (adapted, quantised, wrapped by FSDP1) gets all its logits at once.

        The chunks run inside the layer's own call, so hooks that gather its weights (FSDP2) fire once, and gradients
        reach the parameters through autograd, so those that exchange them (DDP, FSDP2) fire as for any other layer.

        Args:
            hidden: float[K, D]
            labels: int64[K]
            chunk_rows: Positions whose logits exist at a time; None for all.
        """
        if chunk_rows is None or not _is_plain(self.linear):
            return functional.cross_entropy(self.logits(hidden).float(), labels, reduction="sum")
        head = self.linear

        def run(rows: Tensor) -> Tensor:
            task = _Task(labels, chunk_rows, self.scale, self.cap, getattr(head, "first", 0), torch.is_grad_enabled())
            return _ChunkedLoss.apply(task, rows, head.weight, head.bias, getattr(head, "rows", None))

        return _called_as(head, run, hidden)


class _Task(NamedTuple):
    """What a chunked loss needs besides tensors with gradients."""

    labels: Tensor
    chunk_rows: int
    scale: float
    cap: float | None
    first: int
    """Id of the first new token; without rows for new tokens it has no meaning."""
    wants_gradient: bool


class _Piece(NamedTuple):
    """Columns of the logits that one matrix makes, and where its gradients are summed."""

    columns: slice
    weight: Tensor
    bias: Tensor | None
    weight_grad: Tensor | None
    bias_grad: Tensor | None


def _is_plain(linear: nn.Module) -> bool:
    """Whether its logits are a matrix product; a sharded layer (FSDP2) has a class of its own, but not a forward."""
    return getattr(type(linear), "forward", None) in (nn.Linear.forward, GrownHead.forward)


def _called_as(module: nn.Module, function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """`function(value)` in place of the module's forward, inside the module's call, with all its hooks."""
    module.forward = function
    try:
        return module(value)
    finally:
        del module.forward


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, task: _Task, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        wanted = [needed and task.wants_gradient for needed in ctx.needs_input_grad[1:]]
        parameters = (weight, bias, rows)
        dtype = compute_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):  # its cache must not keep casts without a graph
            grads = [
                torch.zeros_like(parameter, dtype=torch.float32) if parameter is not None and needed else None
                for parameter, needed in zip(parameters, wanted[1:], strict=True)
            ]
            pieces = _pieces(task, [None if p is None else p.to(dtype) for p in parameters], grads)
            hidden_grad = torch.empty_like(hidden) if wanted[0] else None
            total = hidden.new_zeros((), dtype=torch.float32)
            width = max(piece.columns.stop for piece in pieces)
            values = hidden.new_empty(min(task.chunk_rows, len(hidden)), width, dtype=torch.float32)
            for start in range(0, len(hidden), task.chunk_rows):
                chunk = slice(start, start + task.chunk_rows)
                own = hidden[chunk].to(dtype)
                _logits(own, pieces, out=values[: len(own)])
                part = _chunk(task, own, task.labels[chunk], values[: len(own)], pieces, any(wanted), total)
                if hidden_grad is not None and part is not None:
                    hidden_grad[chunk] = part
        ctx.grads = [
            hidden_grad,
            *(None if g is None or p is None else g.to(p.dtype) for g, p in zip(grads, parameters, strict=True)),
        ]
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the gradients of a chunked loss are made once; chunk_rows=null for a second backward")
        grads, ctx.grads = ctx.grads, None
        return None, *(None if grad is None else grad.mul_(grad_outputs[0]) for grad in grads)


def _pieces(task: _Task, parameters: list[Tensor | None], grads: list[Tensor | None]) -> list[_Piece]:
    """The matrices side by side that make the logits: one, or the old head around the rows of new tokens."""
    (weight, bias, rows), (weight_grad, bias_grad, rows_grad) = parameters, grads
    assert weight is not None

    def old(part: slice) -> _Piece:
        cut = [None if tensor is None else tensor[part] for tensor in (bias, weight_grad, bias_grad)]
        return _Piece(part, weight[part], *cut)

    if rows is None:
        return [old(slice(0, len(weight)))]
    end = task.first + len(rows)
    new = _Piece(slice(task.first, end), rows, None, rows_grad, None)
    return [old(slice(0, task.first)), new, *([old(slice(end, len(weight)))] if end < len(weight) else [])]


def _logits(hidden: Tensor, pieces: list[_Piece], out: Tensor) -> None:
    """What the matrices make of float[K, D], into `out`, float32[K, V]."""
    for piece in pieces:
        part = out[:, piece.columns]
        if hidden.dtype != out.dtype:
            part.copy_(functional.linear(hidden, piece.weight, piece.bias))
        elif piece.bias is None:
            torch.mm(hidden, piece.weight.T, out=part)
        else:
            torch.addmm(piece.bias, hidden, piece.weight.T, out=part)


def _chunk(
    task: _Task,
    hidden: Tensor,
    labels: Tensor,
    values: Tensor,
    pieces: list[_Piece],
    wants_gradient: bool,
    total: Tensor,
) -> Tensor | None:
    """Adds the loss of some positions to `total` and the gradients of weights to theirs; gives that of `hidden`.

    `values` is float32[K, V], what the matrices made of `hidden`; it is used up.
    """
    if task.scale != 1.0:
        values.mul_(task.scale)
    slope = None
    if task.cap is not None:
        values.div_(task.cap).tanh_()
        slope = 1 - values * values
        values.mul_(task.cap)
    places = labels[:, None]
    values.sub_(values.amax(dim=1, keepdim=True))
    own = values.gather(1, places)
    sums = values.exp_().sum(dim=1, keepdim=True)
    total += (sums.log() - own).sum()
    if not wants_gradient:
        return None
    values.mul_(task.scale / sums).scatter_add_(1, places, torch.full_like(own, -task.scale))  # softmax minus one-hot
    return _gradients(values if slope is None else values.mul_(slope), hidden, pieces)


def _gradients(values: Tensor, hidden: Tensor, pieces: list[_Piece]) -> Tensor:
    """From float32[K, V] with respect to what the matrices gave."""
    low = values.to(hidden.dtype)
    found = torch.zeros_like(hidden)
    for piece in pieces:
        found.addmm_(low[:, piece.columns], piece.weight)
        if piece.weight_grad is not None:
            if low.dtype == piece.weight_grad.dtype:
                piece.weight_grad.addmm_(low[:, piece.columns].T, hidden)
            else:
                piece.weight_grad.add_(low[:, piece.columns].T @ hidden)
        if piece.bias_grad is not None:
            piece.bias_grad.add_(values[:, piece.columns].sum(dim=0))
    return found
