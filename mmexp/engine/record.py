"""What has to be equal, besides the data, for a resumed run to go on as if nothing had been."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from torch import nn

from mmexp.errors import CheckpointError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from mmexp.engine.module import TrainingModule

_VERSIONS = ("torch", "lightning", "transformers")
_NUM_PROBES = 64
_AS_INTEGER = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
FROZEN = "weights that do not train"
"""Key of their fingerprint. Another base is never accepted."""


def versions() -> dict[str, str]:
    """The packages that numbers depend on."""
    return {f"version of {name}": metadata.version(name) for name in _VERSIONS}


def fingerprint(module: nn.Module) -> str:
    """16 hex digits of all parameters that do not train: names, shapes, a few values, and the sum of all bits.

    The sum is one of whole numbers, so it depends on no order and no number of threads.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            continue
        bits = parameter.detach().contiguous().flatten().view(_AS_INTEGER[parameter.element_size()])
        probes = bits[:: max(1, bits.numel() // _NUM_PROBES)].to(torch.int64).tolist()
        total = int(bits.sum(dtype=torch.int64))
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {probes} {total}\n".encode())
    return digest.hexdigest()


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs, in words; what only one of the two records knows nothing of is left out."""
    return [
        f"{name} is {here[name]}, the checkpoint has {saved[name]}"
        for name in here
        if name in saved and saved[name] != here[name]
    ]


def require_same_base(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises CheckpointError when the frozen weights are other ones than those the checkpoint was trained on."""
    if saved.get(FROZEN, here[FROZEN]) != here[FROZEN]:
        raise CheckpointError(
            f"{FROZEN} have the fingerprint {here[FROZEN]}, the checkpoint was trained on {saved[FROZEN]}",
            expected="the same base weights: encoder, LLM and stage.init_from of the run",
            where="resume",
            fix="put the files back that encoder.path, llm.path and stage.init_from name, or start another run",
        )


class ResumeRecord(Callback):
    """Keeps the record in every checkpoint and compares it when a run is resumed.

    Args:
        inexact: Whether differences other than of the base are accepted.
        on_inexact: Gets the accepted differences.
    """

    def __init__(self, inexact: bool, on_inexact: Callable[[list[str]], None]) -> None:
        self.inexact, self.on_inexact = inexact, on_inexact

    def on_save_checkpoint(self, trainer: Trainer, pl_module: TrainingModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        checkpoint["record"] = _record(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: TrainingModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        saved, here = checkpoint.get("record", {}), _record(trainer, pl_module)
        require_same_base(saved, here)
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        found = [*datamodule.differences, *differences(saved, here)]
        if not found:
            return
        if not self.inexact:
            raise CheckpointError(
                "; ".join(found),
                expected="the same, so that the resumed run is the run that was stopped",
                where="resume",
                fix="resume as the run was started, or accept another course of it with inexact_resume=true",
            )
        _move_to(checkpoint, datamodule, checkpoint["global_step"] * trainer.accumulate_grad_batches)
        self.on_inexact(found)


def _record(trainer: Trainer, module: TrainingModule) -> dict[str, Any]:
    return {
        "micro-batches of a step": trainer.accumulate_grad_batches,
        "steps of the run": module.recipe.num_steps,
        "trainer.precision": str(trainer.precision),
        "strategy": type(trainer.strategy).__name__,
        "device": trainer.strategy.root_device.type,
        FROZEN: module.frozen,
        **versions(),
    }


def _move_to(checkpoint: dict[str, Any], datamodule: Any, position: int) -> None:
    """Both the data and Lightning's count of batches go on at `position`: a step may have other micro-batches now."""
    datamodule.position = position
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts |= dict.fromkeys(counts, position)
