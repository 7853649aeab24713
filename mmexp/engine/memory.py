"""A device that is full: what lay on it, and what makes it fit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mmexp.engine.pace import num_media
from mmexp.errors import MmexpError

if TYPE_CHECKING:
    from mmexp.contracts import Batch
    from mmexp.engine.job import StageJob

_ON_CPU = ("can't allocate memory", "not enough memory")


class OutOfMemory(MmexpError):
    """A device, or the machine, has less memory than a step takes."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _ON_CPU)


class Load(NamedTuple):
    """What a micro-batch holds."""

    samples: int
    tokens: int
    rows: int
    columns: int
    media: int

    @classmethod
    def of(cls, batch: Batch) -> Load:
        """That of a batch."""
        rows, columns = batch.input_ids.shape
        return cls(len(batch.ids), batch.num_tokens, rows, columns, num_media(batch))

    def __str__(self) -> str:
        return (
            f"a micro-batch of {self.samples} samples, {self.tokens:,} tokens in {self.rows} rows of "
            f"{self.columns:,}, {self.media} media"
        )


def out_of_memory(error: BaseException, job: StageJob, step: int, load: Load | None) -> OutOfMemory:
    """The error to show; nothing is tried again, for a smaller batch would be another experiment.

    Args:
        error: The failed allocation.
        job: The stage.
        step: Optimizer steps that are done.
        load: The last micro-batch that was begun; None before the first one.
    """
    held = _held()
    asked = str(error).splitlines()[0].removeprefix("CUDA out of memory. ") if str(error) else type(error).__name__
    return OutOfMemory(
        f"out of memory with {load or 'the weights alone'}. {asked}" + (f" {held}" if held else ""),
        where=f"step {step + 1}",
        fix="; or ".join(islice(_ways(job), 3)) + " (the doctor sizes each of them: same overrides, gpu=<name>)",
    )


def _held() -> str:
    """The most that was held of this process's GPU; empty on a CPU."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return ""
    peak, whole = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties().total_memory
    return f"Tensors held {peak / 1e9:.1f} of the {whole / 1e9:.1f} GB of {torch.cuda.get_device_name()}."


def _ways(job: StageJob) -> Iterator[str]:
    """Overrides that take less memory and are not in use yet, the smallest change first."""
    trainer, llm = job.trainer, job.policy.get("llm")
    plan: Any = job.plan
    if "llm" not in trainer.gradient_checkpointing and plan.llm is not None:
        yield "trainer.gradient_checkpointing=[llm]"
    if job.micro_batch_size > 1:
        yield f"stage.micro_batch_size={job.micro_batch_size // 2}"
    if trainer.precision.startswith("32"):
        yield "trainer.precision=bf16-mixed"
    if getattr(plan.llm, "quantize", None) == "none" and not trainer.shares_weights:
        lora = [] if llm in ("frozen", "lora") else ["stage.policy.llm=lora"]
        yield " ".join(["llm.quantize=int8", *lora])
    if plan.max_length_tokens > 1024:
        yield "processor.max_length_tokens=1024"
    if not trainer.shares_weights and getattr(plan.llm, "quantize", "none") == "none":
        yield f"trainer=fsdp_bf16 trainer.devices={max(8, trainer.world_size)}"
