"""Bytes of a stage on each device: weights, gradients, optimizer, activations, under a strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmexp.sizing.batch import synthetic_batch
from mmexp.sizing.setup import Setup
from mmexp.sizing.trace import LOGITS, Trace, trace_step

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.model import MultimodalModel, Plan
    from mmexp.sizing.workload import Workload

_QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Of one weight. Source: QLoRA, section 3: 4 bits, an 8-bit scale for 64 weights, a float32 for 256 of these."""
_SCALE_BYTES = {"int8": 4, "nf4": 0}
"""Of one row. Source: LLM.int8(), section 3: a scale for each row."""
_MOMENTS = 2
"""Averages that AdamW keeps of each trained weight."""
_BUCKET = 500_000_000
"""Elements of the float32 bucket in which DeepSpeed gathers gradients, by its default."""
_LIVE = 1_000_000_000
"""Elements of gathered weights that DeepSpeed's stage 3 keeps at once, by its default."""


@dataclass(frozen=True, kw_only=True)
class PartSize:
    """Bytes of one part on one device."""

    name: str
    num_parameters: int
    weights: float
    gradients: float
    optimizer: float
    activations: float


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a stage takes on each device."""

    parts: tuple[PartSize, ...]
    """The parts of the model, then `logits`."""
    peak: float
    """Bytes at the fullest moment."""
    tokens: float
    """Tokens of each sample that it was counted with."""
    setup: Setup

    @property
    def working(self) -> float:
        """Bytes of the fullest moment beyond what the parts keep: of the backward pass, of buckets, of weights that are
        gathered for use; negative where gradients are not there yet while activations are."""
        return self.peak - sum(self.total(name) for name in ("weights", "gradients", "optimizer", "activations"))

    def total(self, column: str) -> float:
        """The sum of one column of `parts`."""
        return sum(getattr(part, column) for part in self.parts)


def trace_stage(
    plan: Plan, model: MultimodalModel, objective: nn.Module, setup: Setup, workload: Workload
) -> tuple[Trace, float]:
    """The fullest micro-batch of a stage, and the tokens of each of its samples.

    Args:
        plan: The model's plan.
        model: `plan.empty()` after `apply_policy`.
        objective: Built on the device `meta`.
        setup: How it runs.
        workload: How long its samples are.
    """
    quantised = quantised_weights(model, setup.quantize)
    tokens = workload.fullest(setup.micro_batch_size, setup.is_by_length)
    supervised = workload.supervised * tokens / workload.tokens
    count, times = setup.micro_batch_size, 1
    if setup.row != "padded":  # one long segment keeps what many short ones keep, and is one call of attention a layer
        count, times = 1, count
    batch = synthetic_batch(plan, count, tokens * times, supervised * times, workload.media * times, setup.row)

    as_they_are = (
        {id(p) for block in _blocks(model) for p in block.parameters()} if setup.fetches_in_half else quantised
    )

    def dtype_of(tensor: Tensor) -> torch.dtype:
        in_half = setup.is_half or (setup.has_autocast and id(tensor) in as_they_are and tensor.ndim > 1)
        return torch.bfloat16 if in_half and tensor.is_floating_point() else tensor.dtype

    trace = trace_step(model, objective, batch, setup.has_autocast, setup.accumulate, dtype_of, setup.is_on_gpu)
    return trace, tokens


def size_stage(model: MultimodalModel, objective: nn.Module, setup: Setup, trace: Trace, tokens: float) -> Size:
    """The bytes of a stage whose fullest micro-batch, of samples of `tokens` tokens, was traced.

    Source: Rajbhandari et al. 2020, ZeRO, sections 3 and 5 (what is shared out); Zhao et al. 2023, PyTorch FSDP,
    section 3.2 (units that are gathered for use: here each repeated block, and the rest as one).
    """
    quantised = quantised_weights(model, setup.quantize)
    parts = tuple(
        _part(name, module, trace, setup, quantised)
        for name, module in {**model.parts(), "objective": objective}.items()
        if name != "objective" or any(True for _ in objective.parameters())
    )
    logits = PartSize(name=LOGITS, num_parameters=0, weights=0, gradients=0, optimizer=0,
                      activations=trace.activation_bytes.get(LOGITS, 0))  # fmt: skip
    gradients = sum(part.gradients for part in parts)
    rest = sum(part.weights + part.optimizer for part in parts)
    peak = rest + trace.peak_bytes(gradients) + _extra(model, setup, gradients)
    return Size(parts=(*parts, logits), peak=peak, tokens=tokens, setup=setup)


def quantised_weights(model: MultimodalModel, quantize: str) -> dict[int, Tensor]:
    """The weights of the LLM that few bits store, by identity: of all linear layers but the head and adapters."""
    wrapped = getattr(model.llm, "model", None)
    if quantize == "none" or wrapped is None:
        return {}
    head = wrapped.get_output_embeddings()
    return {
        id(module.weight): module.weight
        for name, module in wrapped.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    }


def _part(name: str, module: nn.Module, trace: Trace, setup: Setup, quantised: dict[int, Tensor]) -> PartSize:
    sharding, devices = setup.sharding, setup.num_devices
    weights = sum(_stored(p, setup, quantised) for p in (*module.parameters(), *module.buffers()))
    trained = [p for p in module.parameters() if p.requires_grad]
    gradients = sum(_stored(p, setup, {}) for p in trained)
    optimizer = _MOMENTS * gradients
    if setup.is_deepspeed:
        optimizer = sum(4 * (1 + _MOMENTS) * p.numel() for p in trained)
    return PartSize(
        name=name,
        num_parameters=sum(p.numel() for p in module.parameters()),
        weights=weights / (devices if sharding == "everything" else 1),
        gradients=gradients / (devices if sharding in ("everything", "optimizer") else 1),
        optimizer=optimizer / (devices if sharding in ("everything", "optimizer") else 1),
        activations=trace.activation_bytes.get(name, 0),
    )


def _stored(tensor: Tensor, setup: Setup, quantised: dict[int, Tensor]) -> float:
    """Bytes of a tensor where it rests."""
    if id(tensor) in quantised:
        return tensor.numel() * _QUANTISED_BYTES[setup.quantize] + len(tensor) * _SCALE_BYTES[setup.quantize]
    in_half = setup.is_half and tensor.is_floating_point()
    return tensor.numel() * (2 if in_half else tensor.element_size())


def _extra(model: MultimodalModel, setup: Setup, gradients: float) -> float:
    """Bytes that a strategy takes on top: copies of gradients on their way, and whole weights while they are used."""
    if setup.sharding == "replicas":
        return gradients
    if setup.sharding == "none":
        return 0.0
    width = 2 if setup.is_half else 4
    fetched = 2 if setup.fetches_in_half else width
    count = sum(p.numel() for p in model.parameters())
    bucket = 4.0 * min(_BUCKET, sum(p.numel() for p in model.parameters() if p.requires_grad))
    if setup.sharding == "optimizer":
        return bucket
    if setup.is_deepspeed:
        return bucket + width * min(_LIVE, count)
    blocks = _blocks(model)
    counts = [sum(p.numel() for p in block.parameters()) for block in blocks]
    trained = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in blocks]
    rest = count - sum(counts)
    return width * (rest + max(trained, default=0)) + 2 * fetched * max(counts, default=0)


def _blocks(model: MultimodalModel) -> list[nn.Module]:
    """What repeats in its parts."""
    return [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]
