"""What the doctor says about size: memory by part, whether it fits, hours, and what to change."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from mmexp.assemble import Experiment, experiment
from mmexp.config import DoctorConfig, Invocation, compose, own_keys
from mmexp.engine.blocks import set_up_blocks
from mmexp.engine.log import console
from mmexp.engine.pace import Speed
from mmexp.errors import ConfigError, MmexpError
from mmexp.model import MultimodalModel
from mmexp.report import plan_table
from mmexp.sizing import (
    GPUS,
    Advice,
    Arithmetic,
    Setup,
    Size,
    Trace,
    Workload,
    advise,
    arithmetic_of,
    gpu_named,
    options_for,
    size_stage,
    trace_stage,
    workload_of,
)
from mmexp.sizing.gpus import gpu_like
from mmexp.tuning import LoraSettings, apply_policy, cast_adapter_inputs

log = logging.getLogger(__name__)

_MOST_DEVICES = 64
Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """The size of one experiment.

    Args:
        exp: The experiment.
        own: What the doctor was asked.
        model: `exp.plan.empty()` with its policy applied, where somebody has it already.
    """

    exp: Experiment
    own: DoctorConfig
    model: MultimodalModel | None = None

    @cached_property
    def setup(self) -> Setup:
        """Batch, precision, strategy and devices."""
        spine, trainer = self.exp.checked.spine, self.exp.checked.parts["trainer"]
        setup = Setup(
            batch_size=spine.stage.batch_size,
            micro_batch_size=spine.stage.micro_batch_size,
            precision=trainer.precision,
            strategy=trainer.strategy,
            num_devices=trainer.world_size,
            quantize=getattr(self.exp.checked.parts["llm"], "quantize", "none"),
            row=spine.processor.row,
            recompute=tuple(trainer.gradient_checkpointing),
            is_by_length=spine.processor.order == "length",
            is_on_gpu=trainer.accelerator != "cpu",
        )
        if setup.batch_size % (setup.micro_batch_size * setup.num_devices):
            step = setup.micro_batch_size * setup.num_devices
            raise ConfigError(f"{setup.batch_size}", expected=f"a multiple of micro_batch_size x devices = {step}",
                              where="stage.batch_size",
                              fix=f"stage.batch_size={-(-setup.batch_size // step) * step}")  # fmt: skip
        return setup

    @cached_property
    def workload(self) -> Workload:
        """How long samples are."""
        return workload_of(self.exp.plan, self.exp.checked.parts["data"], self.own.tokens, self.own.rows)

    @cached_property
    def size(self) -> Size:
        """Bytes on each device."""
        return size_stage(*self._recomputing, self.setup, *self._trace)

    @cached_property
    def _trace(self) -> tuple[Trace, float]:
        return trace_stage(self.exp.plan, *self._recomputing, self.setup, self.workload)

    def devices_needed(self, memory_bytes: float) -> int | None:
        """How many devices are enough for a job that shares everything out; None for others, and if no number is."""
        counts = [2**power for power in range(_MOST_DEVICES.bit_length())]
        larger = [replace(self.setup, num_devices=number) for number in counts if number > self.setup.num_devices]
        fitting = (
            setup for setup in larger if size_stage(*self._recomputing, setup, *self._trace).peak <= memory_bytes
        )
        found = next(fitting, None) if self.setup.sharding == "everything" else None
        return None if found is None else found.num_devices

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """Operations, without what is computed again."""
        return arithmetic_of(self.exp.plan, *self._modules, self.setup, self.workload, self.num_samples)

    @property
    def num_samples(self) -> int | None:
        """Samples of the whole stage."""
        stage, steps = self.exp.checked.spine.stage, self.exp.checked.parts["trainer"].max_steps
        steps = steps if steps is not None else stage.max_steps
        if steps is not None:
            return steps * stage.batch_size
        return None if self.workload.num_rows is None else round(stage.epochs * self.workload.num_rows)

    @cached_property
    def _recomputing(self) -> tuple[MultimodalModel, torch.nn.Module]:
        """A model of its own where blocks forget what lies inside them: it stays so."""
        if not self.setup.recompute:
            return self._modules
        model = self.exp.plan.empty()
        set_up_blocks(apply_stage_policy(self.exp, model), self.setup.recompute, ())
        return model, self._modules[1]

    @cached_property
    def _modules(self) -> tuple[MultimodalModel, torch.nn.Module]:
        model = self.model
        if model is None:
            model = self.exp.plan.empty()
            apply_stage_policy(self.exp, model)
        with torch.device("meta"):
            return model, self.exp.checked.parts["objective"].build(self.exp.plan)


def apply_stage_policy(exp: Experiment, model: MultimodalModel) -> dict[str, torch.nn.Module]:
    """Freezes, opens and adapts the model's parts as its stage says; returns them by name."""
    stage = exp.checked.spine.stage
    policy = {name: tree for name, tree in stage.policy.items() if exp.plan.inputs or name == "llm"}
    lora = LoraSettings(**vars(stage.lora))
    parts = apply_policy(model, policy, lora, stage.live_dropout, stage.new_tokens)
    if exp.checked.parts["trainer"].precision.endswith("-mixed"):
        cast_adapter_inputs(model, on=False)
    return parts


def speed_of(exp: Experiment) -> Speed | None:
    """What a run on the GPU here measures its utilisation by, seconds for 7B; None without one, or where its peak or
    the stage's operations are not known."""
    gpu = gpu_like(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if gpu is None:
        return None
    sizing = Sizing(exp=exp, own=DoctorConfig(gpu=None, utilisation=1.0, tokens=None, rows=None))
    try:
        flops = sizing.arithmetic.per_sample / sizing.workload.tokens
    except (MmexpError, RuntimeError, NotImplementedError, TypeError) as error:
        log.info("utilisation is not measured: %s", str(error).splitlines()[0])
        return None
    return Speed(flops_per_token=flops, peak_flops=gpu.peak_flops(exp.checked.parts["trainer"].precision))


def show_size(exp: Experiment, invocation: Invocation, own: DoctorConfig, model: MultimodalModel) -> None:
    """Memory by part, hours, whether it fits, and what to change when it does not; about a minute for 7B."""
    if own.gpu is None:
        console.print(
            f"gpu={next(iter(GPUS))} (or {', '.join(list(GPUS)[1:])}) sizes it: memory, FLOPs, hours", soft_wrap=True
        )
        return
    sizing = Sizing(exp=exp, own=own, model=model)
    gpu = gpu_named(own.gpu)
    try:
        size, arithmetic = sizing.size, sizing.arithmetic
    except (MmexpError, RuntimeError, NotImplementedError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        console.print(f"not sized: {str(error).splitlines()[0]}", soft_wrap=True, markup=False)
        return
    console.print(plan_table(memory_rows(size), title=f"memory of each device in GB, {_how(sizing.setup)}"))
    for line in basis_lines(sizing, arithmetic):
        console.print(line, soft_wrap=True, markup=False)
    more = ", and about a third more for what is computed again" if sizing.setup.recompute else ""
    title = f"hours at {own.utilisation:.0%} of the peak (utilisation=){more}"
    console.print(plan_table(card_rows(sizing), title=title))
    _judge(sizing, invocation, gpu.memory_bytes)


def memory_rows(size: Size) -> Rows:
    """One row a part, then the working space, then the peak."""
    columns = ("weights", "gradients", "optimizer", "activations")
    rows: Rows = [
        {"part": part.name, "parameters": f"{part.num_parameters:,}" if part.num_parameters else ""}
        | {name: _gb(getattr(part, name)) for name in columns}
        for part in size.parts
    ]
    if size.working > 0:
        rows.append({"part": "working space", "activations": _gb(size.working)})
    return [*rows, {"part": "peak", **{name: _gb(size.total(name)) for name in columns}, "in all": _gb(size.peak)}]


def basis_lines(sizing: Sizing, arithmetic: Arithmetic) -> Iterator[str]:
    """What the figures rest on."""
    work, size = sizing.workload, sizing.size
    yield (
        f"samples of {work.tokens:,.0f} tokens, {size.tokens:,.0f} in the fullest micro-batch of "
        f"{sizing.setup.micro_batch_size} ({work.source})"
    )
    if sizing.setup.row == "shared":
        yield "processor.row=shared is sized with one text a picture; more of them take more"
    samples = sizing.num_samples
    count = "unknown: rows=N, stage.max_steps=N, or data that are here" if samples is None else f"{samples:,}"
    yield f"samples of the stage: {count}"
    total = "" if arithmetic.total is None else f", {arithmetic.total:.2g} FLOPs in all"
    forward = arithmetic.forward / 1e12
    yield f"{arithmetic.per_sample / 1e12:.3g} TFLOPs a sample, {forward:.3g} of them forward{total}"


def card_rows(sizing: Sizing) -> Rows:
    """Every card: whether the peak fits into it, and how long the stage takes on as many as the job has."""
    rows: Rows = []
    setup, devices = sizing.setup, sizing.setup.num_devices
    for name, gpu in GPUS.items():
        hours = sizing.arithmetic.hours(gpu, devices, setup.precision, sizing.own.utilisation)
        rows.append(
            {
                "card": f"{devices} x {name}",
                "memory": f"{gpu.memory_gb} GB",
                "fits": "yes" if sizing.size.peak <= gpu.memory_bytes else "no",
                "hours": "?" if hours is None else f"{hours:,.1f}",
            }
        )
    return rows


def _judge(sizing: Sizing, invocation: Invocation, memory_bytes: int) -> None:
    size, name = sizing.size, sizing.own.gpu
    if size.peak <= memory_bytes:
        console.print(f"fits {name}: {_gb(size.peak)} of {_gb(memory_bytes)} GB", soft_wrap=True)
        return
    console.print(f"does not fit {name}: {_gb(size.peak)} GB, and it has {_gb(memory_bytes)}", soft_wrap=True)

    def size_with(overrides: tuple[str, ...]) -> Size | None:
        return _resized(invocation, overrides)

    console.print("looking for what makes it fit: a minute or more for 7B", soft_wrap=True)
    needed = sizing.devices_needed(memory_bytes)
    if needed is not None:
        console.print(f"with micro-batches of {size.setup.micro_batch_size} it takes {needed} of them", soft_wrap=True)
    stage, llm = sizing.exp.checked.spine.stage, sizing.exp.checked.parts["llm"]
    options = list(options_for(sizing.setup, stage.policy["llm"], getattr(llm, "dtype", "")))
    ways = advise(size, options, size_with, memory_bytes)
    console.print("\n".join(map(_way, ways)) or "nothing that was tried makes it fit", soft_wrap=True, markup=False)


def _resized(invocation: Invocation, overrides: Sequence[str]) -> Size | None:
    """The size with further overrides; None where the configuration refuses them."""
    changed = {text.split("=")[0].lstrip("+~") for text in overrides}
    kept = [text for text in invocation.overrides if text.split("=")[0].lstrip("+~") not in changed]
    try:
        again = compose("doctor", [*kept, *overrides], invocation.config_dir)
        exp = experiment(again, skip=own_keys(DoctorConfig))
        own = DoctorConfig(**{key: again.cfg[key] for key in own_keys(DoctorConfig)})
        return Sizing(exp=exp, own=own).size
    except ConfigError:
        return None


def _way(advice: Advice) -> str:
    return f"  {' '.join(advice.overrides)}: {_gb(advice.size.peak)} GB"


def _how(setup: Setup) -> str:
    devices = f"{setup.num_devices} x {setup.strategy}" if setup.num_devices > 1 else "one device"
    quantised = "" if setup.quantize == "none" else f", LLM in {setup.quantize}"
    again = f", {' and '.join(setup.recompute)} computed again" if setup.recompute else ""
    return f"{devices}, {setup.precision}{quantised}{again}, micro-batches of {setup.micro_batch_size}"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f}" if num_bytes >= 1e8 or not num_bytes else f"{num_bytes / 1e9:.3f}"
