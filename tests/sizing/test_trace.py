"""The step without content against the real one, and against arithmetic on paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmexp.objective import NextTokenConfig
from mmexp.sizing import synthetic_batch, trace_step
from mmexp.sizing.trace import IN_PLACE

POLICIES = {
    "align": {"encoder": "frozen", "connector": "full", "llm": "frozen"},
    "instruct": {"encoder": "frozen", "connector": "full", "llm": "full"},
    "all": {"encoder": "full", "connector": "full", "llm": "full"},
    "lora": {"encoder": "frozen", "connector": "full", "llm": "lora"},
}


@pytest.mark.parametrize("row", ["flat", "padded"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
def test_flops_are_those_of_a_real_step(make_small: Callable[..., Any], policy: dict[str, str], row: str) -> None:
    small = make_small(policy)
    batch = synthetic_batch(small.plan, 3, tokens=40, supervised=11, media=1, row=row)
    trace = trace_step(small.model(), small.objective, batch)
    real = replace(batch, media={"image": torch.zeros(batch.media["image"].shape)})

    def product(own: Any, left: Any, right: Any, **further: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    with FlopCounterMode(display=False, custom_mapping=dict.fromkeys(IN_PLACE, product)) as counter:
        NextTokenConfig().build(small.plan)(small.model(real=True), real).sums["lm"].backward()
    assert trace.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert trace.flops > 10**6


def test_flops_are_those_of_arithmetic(make_small: Callable[..., Any]) -> None:
    """Frozen LLM behind a trained connector: 2 operations a weight and token forward, and 2 backward to activations.

    The last layer has keys and values of all positions, and all else of the supervised ones.
    """
    small = make_small(POLICIES["align"])
    samples, tokens, supervised, width, vocab = 2, 50, 7, 32, 259
    batch = synthetic_batch(small.plan, samples, tokens, supervised, media=1)
    trace = trace_step(small.model(), small.objective, batch)
    key_value = 2 * width * width // 2
    others = width * width * 2 + 3 * width * 2 * width  # q and o, gate, up, down
    llm = 2 * 2 * samples * (2 * key_value * tokens + others * (tokens + supervised))  # two layers, forward, backward
    pairs = tokens**2 + tokens * supervised
    attention = 2 * pairs * width * samples * (2 + 5)  # two products forward; five backward, as it recomputes
    head = 2 * 2 * width * vocab * supervised * samples
    patches = 4
    vit = 2 * (4 * width * width + 2 * width * 2 * width) * (patches + 1) + 2 * 2 * (patches + 1) ** 2 * width
    vit += 2 * 3 * 14 * 14 * width * patches
    connector = 2 * (2 * width * width) * patches * 2 + 2 * width * width * patches  # no gradient of the features
    expected = llm + attention + head + (vit + connector) * samples
    assert trace.flops == pytest.approx(expected, rel=0.02)


def test_a_frozen_part_costs_no_backward_pass(make_small: Callable[..., Any]) -> None:
    flops = {}
    for name in ("align", "instruct"):
        small = make_small(POLICIES[name])
        flops[name] = trace_step(small.model(), small.objective, synthetic_batch(small.plan, 2, 60, 20, 1))
    assert flops["align"].forward_flops < flops["instruct"].forward_flops, "a trained head gets its gradient there"
    ratios = {name: trace.flops / trace.forward_flops for name, trace in flops.items()}
    assert 1.8 < ratios["align"] < 2.5, "attention has five products backward for two forward, whatever is frozen"
    assert ratios["instruct"] > ratios["align"]
    assert not flops["align"].activation_bytes.get("encoder"), "nothing of the frozen encoder is kept"


def test_tracing_changes_nothing_of_the_model(make_small: Callable[..., Any]) -> None:
    small = make_small()
    model = small.model()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    trace_step(model, small.objective, synthetic_batch(small.plan, 2, 40, 10, 1))
    hooks = num_hooks(model)  # transformers adds some of its own in the first call
    trace_step(model, small.objective, synthetic_batch(small.plan, 2, 40, 10, 1))
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert all(parameter.is_meta and parameter.grad is None for parameter in model.parameters())
    assert num_hooks(model) == hooks


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_activations_grow_with_the_batch_and_logits_with_supervised_tokens(make_small: Callable[..., Any]) -> None:
    small = make_small()

    def kept(samples: int, supervised: int) -> dict[str, int]:
        batch = synthetic_batch(small.plan, samples, 60, supervised, 1)
        return dict(trace_step(small.model(), small.objective, batch).activation_bytes)

    base, wide, long = kept(4, 10), kept(8, 10), kept(4, 20)
    assert wide["llm"] == pytest.approx(2 * base["llm"], rel=0.02)
    head = 259 * 32 * 4  # bytes of its gradient, which the forward pass makes
    assert long["logits"] - head == pytest.approx(2 * (base["logits"] - head), rel=0.05)
    assert base["llm"] < long["llm"] < 1.2 * base["llm"], "the last layer keeps the supervised positions only"


def test_dropout_keeps_a_byte_an_element_on_gpus_and_a_value_on_cpus(make_small: Callable[..., Any]) -> None:
    small = make_small(POLICIES["lora"])
    batch = synthetic_batch(small.plan, 2, 60, 10, 1)
    gpu, cpu = (
        trace_step(small.model(), small.objective, batch, is_on_gpu=where).activation_bytes["llm"]
        for where in (True, False)
    )
    elements = kept_by_dropout(small)
    assert cpu - gpu == 3 * elements  # float32 is four bytes


def kept_by_dropout(small: Any) -> int:
    """Elements that the adapters' dropout sees in a real step."""
    model, seen = small.model(real=True), []
    for module in model.llm.modules():
        if isinstance(module, nn.Dropout) and module.p:
            module.register_forward_hook(lambda module, args, output: seen.append(output.numel()))
    batch = synthetic_batch(small.plan, 2, 60, 10, 1)
    media = {name: torch.zeros(value.shape) for name, value in batch.media.items()}
    NextTokenConfig().build(small.plan)(model, replace(batch, media=media))
    return sum(seen)


def test_gradients_are_gone_during_backward_unless_steps_have_several_micro_batches(
    make_small: Callable[..., Any],
) -> None:
    small = make_small()
    batch = synthetic_batch(small.plan, 2, 40, 10, 1)
    alone = trace_step(small.model(), small.objective, batch)
    several = trace_step(small.model(), small.objective, batch, accumulate=2)
    assert min(share for _, share in alone.moments) == 0
    assert min(share for _, share in several.moments) == 1
    assert alone.moments[-1][1] == several.moments[-1][1] == 1
