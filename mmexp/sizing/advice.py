"""What to change when a stage does not fit: overrides, each of which was sized and does fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmexp.sizing.memory import Size
from mmexp.sizing.setup import Setup

SizeWith = Callable[[tuple[str, ...]], Size | None]
"""The size with further overrides; None when the configuration would be wrong with them."""
_MANY = 8
"""Devices that are proposed to a job on one."""
_FEWEST_BITS = ("llm.quantize=nf4", "llm.dtype=bfloat16")


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One way out."""

    overrides: tuple[str, ...]
    """What to add to the command."""
    size: Size
    """What it takes then."""


def advise(now: Size, options: Sequence[tuple[str, ...]], size_with: SizeWith, memory_bytes: float) -> list[Advice]:
    """The ways that fit, in the order of `options`; each with a micro-batch as large as was found to fit.

    Args:
        now: What does not fit.
        options: Overrides to try; an empty one stands for a smaller micro-batch alone.
        size_with: Sizes the stage with further overrides.
        memory_bytes: What a device has.
    """
    found = (_with_largest_batch(option, now, size_with, memory_bytes) for option in options)
    return [advice for advice in found if advice is not None]


def options_for(setup: Setup, llm_policy: Any, llm_dtype: str) -> Iterator[tuple[str, ...]]:
    """What can be tried, the smallest change first.

    Args:
        setup: What does not fit.
        llm_policy: The policy's subtree of the LLM.
        llm_dtype: How the LLM's weights are stored.
    """
    yield ()
    if "llm" not in setup.recompute:
        yield ("trainer.gradient_checkpointing=[llm]",)
    if setup.precision.startswith("32") and setup.num_devices == 1:
        yield ("trainer=single_bf16",)
    if llm_policy == "frozen" and llm_dtype == "float32":
        yield ("llm.dtype=bfloat16",)
    if setup.quantize == "none" and setup.sharding == "none":
        yield ("llm.quantize=int8", *(() if llm_policy == "frozen" else ("stage.policy.llm=lora",)))
    if setup.quantize != "none":  # what belongs to a weight in few bits cannot be shared out
        yield _FEWEST_BITS
        yield (*_FEWEST_BITS, "processor.max_length_tokens=1024")
        return
    if setup.sharding != "everything":
        yield ("trainer=fsdp_bf16", f"trainer.devices={max(_MANY, setup.num_devices)}")
    else:
        yield (f"trainer.devices={2 * setup.num_devices}",)


def _with_largest_batch(option: tuple[str, ...], now: Size, size_with: SizeWith, memory_bytes: float) -> Advice | None:
    """The option alone when that is enough, else with a smaller micro-batch; None when not even one sample fits.

    The peak is the largest of several sums that grow with the micro-batch, so between two sizes it lies below their
    straight line, which says where to try.
    """
    whole = size_with(option) if option else now
    if whole is not None and whole.peak <= memory_bytes:
        return Advice(overrides=option, size=whole)
    one = _smaller(option, 1, size_with)
    if one is None or one.size.peak > memory_bytes:
        return None
    largest = now.setup.micro_batch_size
    for half in (largest >> step for step in range(1, largest.bit_length() - 1)):
        if whole is None or _line(one.size, whole, half) <= memory_bytes:
            advice = _smaller(option, half, size_with)
            if advice is not None and advice.size.peak <= memory_bytes:
                return advice
    return one


def _smaller(option: tuple[str, ...], micro_batch_size: int, size_with: SizeWith) -> Advice | None:
    overrides = (*option, f"stage.micro_batch_size={micro_batch_size}")
    size = size_with(overrides)
    return None if size is None else Advice(overrides=overrides, size=size)


def _line(low: Size, high: Size, at: int) -> float:
    """The peak between two micro-batches, if it grew evenly."""
    first, last = low.setup.micro_batch_size, high.setup.micro_batch_size
    return low.peak + (high.peak - low.peak) * (at - first) / max(1, last - first)
