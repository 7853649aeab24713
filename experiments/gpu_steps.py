"""What does a step of LLaVA-1.5 take on one GPU, beside transformers' own class? Called by `gpu.py`.

Both frameworks hold the very same weights (the same tensors), take the same samples and the same optimizer, under
autocast to bfloat16, in turns whose order alternates; wall time between two waits for the device, warm-up first.
Encoder and LLM have the sizes of LLaVA-1.5-7B (CLIP ViT-L/14 at 336 px: 576 soft tokens a picture) and random weights;
1.3B has 24 layers of 2,048.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from answer_time import make_ways, measure
from peft import LoraConfig, inject_adapter_in_model
from step_pair import (
    ABLATIONS,
    OURS,
    RECOMPUTED,
    THEIRS,
    Shape,
    build_ours,
    build_theirs,
    counterparts,
    freeze,
    make_items,
    make_loss,
)
from torch import nn

from mmexp.data import Collator
from mmexp.engine.blocks import blocks_of
from mmexp.llm import attention
from mmexp.objective import NextToken
from mmexp.sizing import trace_step

VISION: dict[str, Any] = {"vision_layers": 24, "vision_width": 1024, "image_px": 336, "patch_px": 14}
SHAPES = {
    "7B": Shape(**VISION, layers=32, width=4096, vocabulary=32_000, head_width=128),
    "1.3B": Shape(**VISION, layers=24, width=2048, vocabulary=32_000, head_width=128),
    "tiny": Shape(vision_layers=2, vision_width=64, layers=2, width=128, vocabulary=512, image_px=56, patch_px=14),
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LOOP, LARGE, COMPILED = "mmexp, a call a segment", "mmexp, logits in chunks of 2,048", "mmexp, LLM compiled"
ABLATIONS |= {LOOP: ("flat", {}), LARGE: ("flat", {"chunk_rows": 2048}), COMPILED: ABLATIONS[OURS]}
NAMES = (OURS, LOOP, LARGE, THEIRS, RECOMPUTED)


class Case(NamedTuple):
    """What is timed."""

    shape: str
    stage: int
    pictures: int
    """Rows, or pictures of `texts` rows each."""
    texts: int = 1
    lora: bool = False
    """Whether the LLM trains through adapters of rank 128, as LLaVA-1.5's own."""


CASES = {
    "7B, stage 1": Case("7B", 1, 16),
    "7B, stage 1, five captions a picture": Case("7B", 1, 4, texts=5),
    "7B, stage 2 with LoRA": Case("7B", 2, 8, lora=True),
    "1.3B, stage 2": Case("1.3B", 2, 16),
}
TINY = {
    "tiny, stage 1": Case("tiny", 1, 4, texts=2),
    "tiny, stage 2 with LoRA": Case("tiny", 2, 4, lora=True),
    "tiny, stage 2": Case("tiny", 2, 4),
}


def build(case: Case, device: str) -> dict[str, nn.Module]:
    """transformers' model and ours, which share every tensor but those of adapters."""
    shape, whole = SHAPES[case.shape], case.stage == 2 and not case.lora
    with torch.device(device), _default(torch.float32 if whole else torch.bfloat16):
        theirs, ours = build_theirs(shape), build_ours(shape)
    theirs.model.multi_modal_projector.float()
    theirs.model.vision_tower.bfloat16()
    pairs = counterparts(ours, theirs)
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict(keep_vars=True), strict=False, assign=True)
    for model in (ours, theirs):
        freeze(model, 1 if case.lora else case.stage)
    if case.lora:
        for decoder in (ours.llm.model.get_decoder(), theirs.model.language_model):
            _add_lora(decoder)
    return {THEIRS: theirs.train(), OURS: ours.train()}


def _add_lora(decoder: nn.Module) -> None:
    inject_adapter_in_model(LoraConfig(r=128, lora_alpha=256, target_modules=LINEAR), decoder)
    for name, weight in decoder.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
            nn.init.normal_(weight, std=1e-3)  # the second matrix too, or the first would get no gradient
            weight.requires_grad_(True)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Variant:
    """One way to make a step. Those of one model share its optimizer."""

    def __init__(self, name: str, models: dict[str, nn.Module], case: Case, items: Any, device: str) -> None:
        self.name, self.model = name, models[THEIRS if name in (THEIRS, RECOMPUTED) else OURS]
        self.loss: Callable[[], torch.Tensor] = make_loss(name, self.model, SHAPES[case.shape], items, True, device)
        self.blocks: Any = blocks_of(self.model.llm) if name == COMPILED else []
        self.compiled = [torch.compile(block._call_impl) for block in self.blocks]
        if "optimizer_of_trained" not in vars(self.model):
            trained = [weight for weight in self.model.parameters() if weight.requires_grad]
            vars(self.model)["optimizer_of_trained"] = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        self.optimizer: Any = vars(self.model)["optimizer_of_trained"]

    def __call__(self) -> None:
        """One step."""
        with self._set_up():
            self.loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def _set_up(self) -> Iterator[None]:
        has_varlen = attention._has_varlen
        if self.name == LOOP:
            attention._has_varlen = lambda: False
        for block, call in zip(self.blocks, self.compiled, strict=True):
            block._compiled_call_impl = call  # what `block.compile()` sets, for one step
        try:
            yield
        finally:
            attention._has_varlen = has_varlen
            for block in self.blocks:
                block._compiled_call_impl = None


def steps(name: str, case: Case, rounds: int, device: str, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """Seconds and memory above the resting state of one case."""
    started = time.perf_counter()
    _empty(device)
    models = build(case, device)
    items = make_items(SHAPES[case.shape], case.stage, case.pictures, texts=case.texts)
    variants = {each: Variant(each, models, case, items, device) for each in names}
    seconds: dict[str, list[float]] = {each: [] for each in names}
    memory = {}
    _require_alike(variants)
    for each, variant in variants.items():
        try:
            variant()
            variant()
            rest = _allocated(device)
            variant()
            memory[each] = (_peak(device) - rest) / 1e9
        except torch.OutOfMemoryError as error:
            print(name, each, "out of memory:", str(error).splitlines()[0], flush=True)
            del seconds[each]
            variant.optimizer.zero_grad(set_to_none=True)
        _empty(device)
    rates = []
    for number in range(rounds):
        rates.append(product_rate(device))
        for each in seconds if number % 2 else reversed(list(seconds)):
            seconds[each].append(clock(variants[each], device))
    medians = {each: statistics.median(values) for each, values in seconds.items()}
    lengths = [len(item.input_ids) for item in items]
    print(name, {k: round(v, 3) for k, v in medians.items()}, f"{time.perf_counter() - started:.0f} s", flush=True)
    return {
        "seconds": seconds,
        "memory_gb": memory,
        "rate": statistics.median(rates),
        "tokens": sum(lengths),
        "padding": 1 - sum(lengths) / (len(lengths) * max(lengths)),
    }


def _require_alike(variants: dict[str, Variant]) -> None:
    """Stops unless all have the same loss, as far as bfloat16 goes; how exact they are, `step_time.py` looks at."""
    with torch.no_grad():
        losses = {name: float(variant.loss()) for name, variant in variants.items()}
    if max(losses.values()) > 1.01 * min(losses.values()):
        raise RuntimeError(f"losses differ: {losses}; nothing was timed")


def traced(case: Case) -> dict[str, float]:
    """Operations of a step of ours, and GB that it should take above the resting state, as the doctor counts them.

    It counts a step of Lightning's, where the last gradients stay during the forward pass; here none do.
    """
    model = build(case, "meta")[OURS]
    batch = Collator(pad_id=0, row="shared")(
        make_items(SHAPES[case.shape], case.stage, case.pictures, texts=case.texts)
    )
    batch = replace(batch, media={name: value.to("meta") for name, value in batch.media.items()})
    trace = trace_step(model, NextToken(), batch, has_autocast=True)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    start = next(at for at, (_, share) in enumerate(trace.moments) if share < 1)  # of the backward pass
    forward, backward = trace.moments[:start], trace.moments[start:]
    peak = max([held for held, _ in forward] + [held + share * gradients for held, share in backward])
    return {"flops": trace.flops, "memory_gb": peak / 1e9}


def answers(shape_name: str, rounds: int, device: str) -> dict[str, Any]:
    """Seconds to answer five questions about each of two pictures, by way and length of the answers."""
    models = build(Case(shape_name, 1, 1), device)
    pair = models[OURS].eval().bfloat16(), models[THEIRS].eval().bfloat16()
    now = partial(_now, device)
    return {
        str(length): measure(make_ways(length, SHAPES[shape_name], *pair, device), rounds, now, alike=False)
        for length in (4, 16)
    }


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def clock(work: Callable[[], Any], device: str) -> float:
    """Seconds until the device is done."""
    began = _now(device)
    work()
    return _now(device) - began


def product_rate(device: str) -> float:
    """Floating-point operations a second of a large product in bfloat16."""
    side = 8192 if device == "cuda" else 512
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.matmul(left, right)
    return 8 * 2 * side**3 / clock(lambda: [left @ right for _ in range(8)], device)


def _allocated(device: str) -> int:
    if device != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def _empty(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
