"""Advice is sized before it is given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmexp.errors import ConfigError
from mmexp.sizing import GPUS, Arithmetic, Setup, Size, advise, gpu_named, options_for
from mmexp.sizing.advice import SizeWith

NOW = Size(parts=(), peak=42, tokens=1, setup=Setup(batch_size=16, micro_batch_size=16))


def sized(bytes_a_sample: dict[tuple[str, ...], tuple[float, float]], micro: int = 16) -> SizeWith:
    """Sizes that are a fixed part and one for each sample, by the option."""

    def size_with(overrides: tuple[str, ...]) -> Size | None:
        at = next((int(text.split("=")[1]) for text in overrides if "micro_batch_size" in text), micro)
        option = tuple(text for text in overrides if "micro_batch_size" not in text)
        if option not in bytes_a_sample:
            return None
        fixed, each = bytes_a_sample[option]
        return Size(parts=(), peak=fixed + each * at, tokens=1, setup=Setup(batch_size=16, micro_batch_size=at))

    return size_with


def test_the_largest_micro_batch_that_fits_is_found() -> None:
    size_with = sized({(): (10, 2)})
    ways = advise(NOW, [()], size_with, memory_bytes=20)
    assert [(way.overrides, way.size.peak) for way in ways] == [(("stage.micro_batch_size=4",), 18)]


def test_options_that_do_not_fit_or_are_mistakes_are_not_named() -> None:
    size_with = sized({(): (100, 1), ("a=1",): (5, 1)})
    ways = advise(NOW, [(), ("a=1",), ("b=1",)], size_with, memory_bytes=30)
    assert [way.overrides for way in ways] == [("a=1",)]


def test_an_option_gets_a_smaller_batch_when_it_needs_one() -> None:
    size_with = sized({("a=1",): (5, 4)})
    ways = advise(NOW, [("a=1",)], size_with, memory_bytes=30)
    assert [way.overrides for way in ways] == [("a=1", "stage.micro_batch_size=4")]
    assert ways[0].size.peak <= 30


def test_options_follow_from_what_is_not_done_yet() -> None:
    alone = Setup(batch_size=16, micro_batch_size=16)
    assert ("trainer.gradient_checkpointing=[llm]",) in list(options_for(alone, "full", "float32"))
    again = replace(alone, recompute=("llm",))
    assert not any("checkpointing" in text for option in options_for(again, "full", "float32") for text in option)
    assert ("trainer=single_bf16",) in list(options_for(alone, "frozen", "float32"))
    assert ("llm.quantize=int8", "stage.policy.llm=lora") in list(options_for(alone, "full", "float32"))
    shared = Setup(batch_size=16, micro_batch_size=1, strategy="fsdp", num_devices=8, precision="bf16-mixed")
    assert ("trainer.devices=16",) in list(options_for(shared, "full", "float32"))
    few = Setup(batch_size=1, micro_batch_size=1, quantize="int8", precision="bf16-mixed")
    assert ("llm.quantize=nf4", "llm.dtype=bfloat16") in list(options_for(few, "lora", "float32"))
    assert not any("fsdp" in text for option in options_for(few, "lora", "float32") for text in option)


def test_an_unknown_card_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        gpu_named("a100")
    assert "gpu=a100_" in str(error.value)


def test_hours_follow_from_operations() -> None:
    work = Arithmetic(per_sample=312e12 * 0.5, forward=1, num_samples=3600 * 8)
    assert work.hours(GPUS["a100_80gb"], 8, "bf16-mixed", 0.5) == pytest.approx(1)
    assert Arithmetic(per_sample=1, forward=1, num_samples=None).hours(GPUS["a100_80gb"], 1, "32-true", 1) is None
