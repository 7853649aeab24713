"""One training step on tensors without content: every operation's shape is computed, and nothing else.

So what any encoder, connector, LLM or objective keeps for its backward pass, and how much it multiplies, is read off
the code that trains, not from a formula for each architecture.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.contracts import Batch
    from mmexp.model import MultimodalModel

LOGITS = "logits"
"""What the output head and the loss make, as a part of its own."""


IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm}
"""Products that torch's own counter does not know, and those that cost the same."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one micro-batch takes."""

    flops: int
    """Of forward and backward pass: products and attention, where a multiplication and an addition count two."""
    forward_flops: int
    activation_bytes: Mapping[str, int]
    """Per part what is kept at the end of the forward pass."""
    moments: tuple[tuple[int, float], ...]
    """At every allocation the bytes of all tensors that the step made besides gradients, and the share of the
    gradients that exists."""

    def peak_bytes(self, gradient_bytes: float) -> float:
        """The most that activations and gradients take together, where all gradients take `gradient_bytes`."""
        return max(held + share * gradient_bytes for held, share in self.moments)


def trace_step(
    model: MultimodalModel,
    objective: nn.Module,
    batch: Batch,
    has_autocast: bool = False,
    accumulate: int = 1,
    dtype_of: Callable[[Tensor], torch.dtype] = attrgetter("dtype"),
    is_on_gpu: bool = True,
) -> Trace:
    """A micro-batch of the second optimizer step (in the first, no gradients are there yet).

    Args:
        model: On the device `meta`, with its policy applied. Nothing of it is changed.
        objective: On `meta` too.
        batch: With media on `meta`.
        has_autocast: Whether the forward pass runs under bf16 autocast.
        accumulate: Micro-batches of an optimizer step; with several, gradients stay during the backward pass.
        dtype_of: What a tensor of the model is stored as while the step runs.
        is_on_gpu: Whether kernels keep what those of a GPU keep.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    media = {name: _fake_like(value, fake, dtype_of(value)) for name, value in batch.media.items()}
    with _materialised([model, objective], fake, dtype_of) as tensors:
        watch = _Watch(fake, [*tensors, *media.values()], keeps_gradients=accumulate > 1)
        with _labelled(model, objective, watch), _masks_of_a_byte() if is_on_gpu else nullcontext(), watch:
            with torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
                losses = objective(model, replace(batch, media=media))
                total = torch.stack([value.float() for value in losses.sums.values()]).sum()
            del losses
            kept, forward = dict(watch.held_by), watch.flops
            watch.start_backward()
            total.backward()
        watch.moments.append((watch.held, 1.0))  # the optimizer's step
    return Trace(flops=watch.flops, forward_flops=forward, activation_bytes=kept, moments=tuple(watch.moments))


class _Watch(TorchDispatchMode):
    """Counts operations, and the bytes of every storage from its first to its last moment."""

    def __init__(self, fake: FakeTensorMode, tensors: list[Tensor], keeps_gradients: bool) -> None:
        super().__init__()
        self.fake, self.label = fake, ""
        self.flops = self.held = 0
        self.held_by: Counter[str] = Counter()
        self.moments: list[tuple[int, float]] = []
        self._storages: dict[int, tuple[Any, int, str]] = {}
        self._outside = {tensor.untyped_storage()._cdata for tensor in tensors}  # whose views are no activations
        self._trained = [tensor for tensor in tensors if tensor.requires_grad]
        self._total = max(1, sum(_nbytes(parameter) for parameter in self._trained))
        self._keeps, self._share = keeps_gradients, 1.0
        for parameter in self._trained:
            parameter.register_post_accumulate_grad_hook(self._arrived)
            if keeps_gradients:
                gradient = _fake_like(parameter.detach(), fake, parameter.dtype)
                parameter.grad = gradient
                self._outside.add(gradient.untyped_storage()._cdata)

    def start_backward(self) -> None:
        """Lightning drops the old gradients here, between forward and backward pass."""
        self._share = 1.0 if self._keeps else 0.0

    def _arrived(self, parameter: Tensor) -> None:
        if not self._keeps and parameter.grad is not None:
            self._drop(parameter.grad.untyped_storage()._cdata)
            self._share += _nbytes(parameter) / self._total

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default):
            args = (args[0], _places(args[1]), *args[2:])
        with self.fake:
            out = func(*args, **kwargs)
        product = IN_PLACE.get(func._overloadpacket, func._overloadpacket)
        if product in flop_registry:
            self.flops += flop_registry[product](*args, **kwargs, out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, FakeTensor):
                self._hold(leaf)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages or key in self._outside:
            return
        size = storage.nbytes()
        self._storages[key] = (weakref.ref(storage, lambda _: self._drop(key)), size, self.label)
        self.held += size
        self.held_by[self.label] += size
        self.moments.append((self.held, self._share))

    def _drop(self, key: int) -> None:
        _, size, label = self._storages.pop(key, (None, 0, ""))
        self.held -= size
        self.held_by[label] -= size


@contextmanager
def _materialised(
    modules: list[nn.Module], fake: FakeTensorMode, dtype_of: Callable[[Tensor], torch.dtype]
) -> Iterator[list[Tensor]]:
    """Puts tensors that claim to be on the CPU in place of those on `meta`, and the old ones back at the end."""
    swapped: list[tuple[dict[str, Any], str, Any]] = []
    made: dict[int, Any] = {}
    for module in (each for top in modules for each in top.modules()):
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None:
                    if id(old) not in made:
                        made[id(old)] = _fake_like(old, fake, dtype_of(old))
                    swapped.append((tensors, name, old))
                    tensors[name] = made[id(old)]  # a tensor that two modules share stays one
    try:
        yield list(made.values())
    finally:
        for tensors, name, old in swapped:
            tensors[name] = old


@contextmanager
def _labelled(model: MultimodalModel, objective: nn.Module, watch: _Watch) -> Iterator[None]:
    """While a module runs, what it makes belongs to its part; what the head and all behind it make, to the logits."""
    parts = {**model.parts(), "objective": objective}
    wrapped = getattr(model.llm, "model", None)
    head = wrapped.get_output_embeddings() if wrapped is not None else None
    outside = ["llm" if head is not None else "objective"]
    watch.label = outside[0]

    def enter(label: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            stack.append(watch.label)
            watch.label = label

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        watch.label = LOGITS if module is head else stack.pop()

    stack: list[str] = []
    with ExitStack() as hooks:
        for label, part in parts.items():
            for module in part.modules():
                if module is not objective:
                    handle = module.register_forward_pre_hook(enter(LOGITS if module is head else label))
                    hooks.callback(handle.remove)
                    hooks.callback(module.register_forward_hook(leave).remove)
        yield


@contextmanager
def _masks_of_a_byte() -> Iterator[None]:
    """Lets dropout keep a byte for each element, as it does on GPUs; on a CPU it keeps another tensor of that dtype."""
    plain = functional.dropout

    def fused(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if training and 0 < p < 1 and not inplace:
            return torch.native_dropout(values, p, True)[0]
        return plain(values, p, training, inplace)

    functional.dropout = fused
    try:
        yield
    finally:
        functional.dropout = plain


def _fake_like(tensor: Tensor, fake: FakeTensorMode, dtype: torch.dtype) -> Any:
    with fake:
        empty = torch.empty_like(tensor, device="cpu", dtype=dtype)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _places(indices: Any) -> list[Any]:
    """Masks as the places where they are true: how many these are is known, for masks have a content."""
    found: list[Any] = []
    for index in indices:
        if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
            found.append(index)
        else:
            found += index.nonzero(as_tuple=True)
    return found


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
