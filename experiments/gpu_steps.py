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
from functools import partial
from typing import Any, NamedTuple

import torch
from answer_time import BATCH, ONE, OURS, PICTURES, QUESTIONS, make_ways, measure
from peft import LoraConfig, inject_adapter_in_model
from step_pair import ABLATIONS, THEIRS, Shape, build_ours, build_theirs, counterparts, freeze, make_items, make_loss
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmexp.engine.blocks import blocks_of
from mmexp.llm import attention

VISION: dict[str, Any] = {"vision_layers": 24, "vision_width": 1024, "image_px": 336, "patch_px": 14}
SHAPES = {
    "7B": Shape(**VISION, layers=32, width=4096, vocabulary=32_000, head_width=128),
    "1.3B": Shape(**VISION, layers=24, width=2048, vocabulary=32_000, head_width=128),
    "tiny": Shape(vision_layers=2, vision_width=64, layers=2, width=128, vocabulary=512, image_px=56, patch_px=14),
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LOOP, LARGE, RECOMPUTED = "mmexp, a call a segment", "mmexp, chunks of 2,048", "transformers, recomputing the LLM"
OURS_, COMPILED = "mmexp", "mmexp, LLM compiled"
ABLATIONS |= {LARGE: ("flat", {"chunk_rows": 2048}), LOOP: ("flat", {}), COMPILED: ABLATIONS[OURS_]}
NAMES = (OURS_, LOOP, LARGE, THEIRS, RECOMPUTED)


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
    return {THEIRS: theirs.train(), OURS_: ours.train()}


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
    """One way to make a step; keeps the models' other states away from the others."""

    def __init__(self, name: str, models: dict[str, nn.Module], case: Case, items: Any, device: str) -> None:
        self.name, self.model = name, models[THEIRS if name in (THEIRS, RECOMPUTED) else OURS_]
        kind = THEIRS if name == RECOMPUTED else name
        self.loss: Callable[[], torch.Tensor] = make_loss(kind, self.model, SHAPES[case.shape], items, True, device)
        self.blocks: Any = blocks_of(self.model.llm) if name == COMPILED else []
        self.compiled = [torch.compile(block._call_impl) for block in self.blocks]
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer: Any = getattr(self.model, "optimizer_of_trained", None)
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
            self.model.__dict__["optimizer_of_trained"] = self.optimizer

    def __call__(self) -> float:
        """One step; its loss."""
        with self._set_up():
            loss = self.loss()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    @contextmanager
    def _set_up(self) -> Iterator[None]:
        found, model = attention._has_varlen, self.model
        if self.name == RECOMPUTED:
            model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[union-attr]
        if self.name == LOOP:
            attention._has_varlen = lambda: False
        for block, call in zip(self.blocks, self.compiled, strict=False):
            block._compiled_call_impl = call  # what `block.compile()` sets, for one step
        try:
            yield
        finally:
            attention._has_varlen = found
            for block in self.blocks:
                block._compiled_call_impl = None
            if self.name == RECOMPUTED:
                model.model.language_model.gradient_checkpointing_disable()  # type: ignore[union-attr]


def steps(
    name: str, case: Case, rounds: int, device: str, names: tuple[str, ...] = NAMES
) -> dict[str, Any]:
    """Seconds, losses, memory above the resting state, and operations of one case."""
    started = time.perf_counter()
    _empty(device)
    models = build(case, device)
    items = make_items(SHAPES[case.shape], case.stage, case.pictures, texts=case.texts)
    variants = {each: Variant(each, models, case, items, device) for each in names}
    seconds: dict[str, list[float]] = {each: [] for each in names}
    losses, memory = {}, {}
    for each, variant in variants.items():
        try:
            losses[each] = variant()
            variant()
            rest = _allocated(device)
            variant()
            memory[each] = (_peak(device) - rest) / 1e9
        except torch.OutOfMemoryError as error:
            print(name, each, "out of memory:", str(error).splitlines()[0], flush=True)
            del seconds[each]
            variant.optimizer.zero_grad(set_to_none=True)
        _empty(device)
    with FlopCounterMode(display=False) as counter:
        Variant(LOOP, models, case, items, device)()
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
        "losses": losses,
        "memory_gb": memory,
        "flops": counter.get_total_flops(),
        "rate": statistics.median(rates),
        "tokens": sum(lengths),
        "padding": 1 - sum(lengths) / (len(lengths) * max(lengths)),
    }


def answers(shape_name: str, rounds: int, device: str) -> dict[str, Any]:
    """Seconds to answer five questions about each of two pictures, by way and length of the answers."""
    models = build(Case(shape_name, 1, 1), device)
    pair = models[OURS_].eval(), models[THEIRS].eval()
    for model in pair:
        model.bfloat16()
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
    left @ right
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


__all__ = ["BATCH", "CASES", "COMPILED", "NAMES", "ONE", "OURS", "OURS_", "PICTURES", "QUESTIONS", "RECOMPUTED", "THEIRS", "TINY", "answers", "steps"]
