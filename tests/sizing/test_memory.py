"""What each strategy, precision and storage does to the bytes of a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmexp.sizing import Setup, Workload
from mmexp.sizing.memory import quantised_weights

FROZEN_LLM = {"encoder": "frozen", "connector": "full", "llm": "frozen"}


def test_columns_are_bytes_of_weights(make_small: Callable[..., Any]) -> None:
    size, _ = make_small().size()
    by_name = {part.name: part for part in size.parts}
    assert list(by_name) == ["encoder", "connector", "llm", "logits"]
    llm = by_name["llm"]
    assert llm.weights == pytest.approx(4 * llm.num_parameters, rel=0.01)
    assert (llm.gradients, llm.optimizer) == (4 * llm.num_parameters, 8 * llm.num_parameters)
    assert (by_name["encoder"].gradients, by_name["encoder"].optimizer) == (0, 0)
    assert size.peak >= sum(size.total(name) for name in ("weights", "optimizer", "gradients"))


def test_replicas_hold_everything_and_a_copy_of_the_gradients(make_small: Callable[..., Any]) -> None:
    alone, _ = make_small().size(batch_size=8)
    many, _ = make_small().size(batch_size=8, strategy="ddp", num_devices=4)
    assert many.total("weights") == alone.total("weights")
    assert many.peak > alone.peak


@pytest.mark.parametrize(
    ("strategy", "weights", "gradients"),
    [("fsdp", 8, 8), ("deepspeed_stage_3", 8, 8), ("deepspeed_stage_2", 1, 8)],
)
def test_what_is_shared_out(make_small: Callable[..., Any], strategy: str, weights: int, gradients: int) -> None:
    alone, _ = make_small().size(batch_size=16)
    shared, _ = make_small().size(batch_size=16, strategy=strategy, num_devices=8)
    assert shared.total("weights") == pytest.approx(alone.total("weights") / weights)
    assert shared.total("gradients") == pytest.approx(alone.total("gradients") / gradients)
    copies = 3 / 2 if "deepspeed" in strategy else 1  # beside the two moments, the weights that AdamW moves
    assert shared.total("optimizer") == pytest.approx(alone.total("optimizer") / gradients * copies)


def test_half_precision_halves_weights_and_autocast_does_not(make_small: Callable[..., Any]) -> None:
    full, _ = make_small().size()
    half, _ = make_small().size(precision="bf16-true")
    mixed, _ = make_small().size(precision="bf16-mixed")
    assert half.total("weights") == pytest.approx(full.total("weights") / 2, rel=0.02)
    assert half.total("optimizer") == full.total("optimizer") / 2
    assert mixed.total("weights") == full.total("weights")
    assert half.total("activations") < mixed.total("activations") < full.total("activations") + full.total("weights")


@pytest.mark.parametrize(("quantize", "smaller"), [("int8", 3.5), ("nf4", 6)])
def test_few_bits_are_counted_for_linear_layers_but_the_head(
    make_small: Callable[..., Any], quantize: str, smaller: float
) -> None:
    small = make_small(FROZEN_LLM)
    full, _ = small.size()
    few, _ = small.size(quantize=quantize)
    llm = {name: next(part for part in size.parts if part.name == "llm") for name, size in
           {"full": full, "few": few}.items()}  # fmt: skip
    model = small.model().llm.model
    outside = 4 * (model.get_input_embeddings().weight.numel() + model.get_output_embeddings().weight.numel())
    assert llm["few"].weights < llm["full"].weights
    assert (llm["few"].weights - outside) * smaller < llm["full"].weights - outside


def test_frozen_weights_are_not_copied_under_autocast_when_few_bits_store_them(make_small: Callable[..., Any]) -> None:
    small = make_small(FROZEN_LLM)
    plain, _ = small.size(precision="bf16-mixed")
    few, _ = small.size(precision="bf16-mixed", quantize="int8")
    linear = quantised_weights(small.model(), "int8").values()
    copies = sum(2 * weight.numel() for weight in linear)
    assert plain.total("activations") - few.total("activations") == copies > 0


def test_matrices_that_are_fetched_in_half_are_not_copied_by_autocast(make_small: Callable[..., Any]) -> None:
    mixed = {"batch_size": 16, "num_devices": 8, "precision": "bf16-mixed"}
    small = make_small()
    replicas, _ = small.size(**mixed, strategy="ddp")
    shares, _ = small.size(**mixed, strategy="fsdp")
    blocks = {id(p): p for part in small.model().modules() if isinstance(part, torch.nn.ModuleList)
              for p in part.parameters() if p.ndim > 1 and p.requires_grad}  # fmt: skip
    copies = sum(2 * matrix.numel() for matrix in blocks.values())
    assert replicas.total("activations") - shares.total("activations") == pytest.approx(copies, rel=0.2)


def test_two_bits_of_arithmetic_about_setups() -> None:
    setup = Setup(batch_size=128, micro_batch_size=4, num_devices=8, strategy="fsdp", precision="bf16-mixed")
    assert setup.accumulate == 4
    assert setup.has_autocast
    assert setup.fetches_in_half
    assert not setup.is_half
    assert Setup(batch_size=4, micro_batch_size=4, strategy="fsdp").sharding == "none"


def test_the_fullest_micro_batch_lies_between_mean_and_longest() -> None:
    work = Workload(num_rows=9, tokens=100, long_tokens=500, supervised=9, media=1, source="")
    assert work.fullest(1, is_by_length=False) == 500
    assert work.fullest(16, is_by_length=False) == 200
    assert work.fullest(16, is_by_length=True) == 500


def test_what_is_computed_again_is_not_kept(make_small: Callable[..., Any]) -> None:
    long = {"workload": Workload(num_rows=9, tokens=400, long_tokens=400, supervised=20, media=1, source="here")}
    kept, trace = make_small().size(**long)
    again, more = make_small().size(**long, recompute=("llm",))
    assert again.peak < kept.peak
    held = {part.name: part.activations for part in kept.parts}
    left = {part.name: part.activations for part in again.parts}
    assert left["llm"] < held["llm"] / 4, "of each block only what goes in"
    assert left["connector"] == held["connector"]
    assert trace.flops < more.flops < trace.flops + trace.forward_flops
