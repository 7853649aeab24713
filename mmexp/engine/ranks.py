"""The processes of one job: which of them this is, what they call their run, and what they agree on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

RUN_ID = "MMEXP_RUN_ID"
"""Environment variable in which the first process tells those that it starts the name of the run."""


def is_main() -> bool:
    """Whether this is the first process of its job: the one that writes, and that talks to the user."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def shared_run_id(overrides: Sequence[str]) -> str | None:
    """A run id that all processes of the job come to, and that a requeued job finds again; None where one may be made.

    Under SLURM it is made of the job's id and the command line, so two commands of one job are two runs.

    Raises:
        ConfigError: torchrun started several processes, and nothing names their run.
    """
    if os.environ.get(RUN_ID) and not is_main():
        return os.environ[RUN_ID]
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"slurm-{job}-{hashlib.sha256(' '.join(overrides).encode()).hexdigest()[:6]}"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(
            "torchrun starts several processes, and each would make a run of its own",
            expected="a name that all of them know",
            where="run_id",
            fix="run_id=<name>; the same command then also continues the run",
        )
    return None


def largest(trainer: Trainer, value: float) -> float:
    """The largest `value` of all processes, the same on each; all of them must ask at the same place."""
    if trainer.world_size == 1:
        return value
    own = torch.tensor(float(value), dtype=torch.float64, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(own, reduce_op="max"))


def total(trainer: Trainer, values: Sequence[float]) -> list[float]:
    """Sums over all processes, the same on each; all of them must ask at the same place."""
    if trainer.world_size == 1:
        return list(values)
    own = torch.tensor([float(value) for value in values], dtype=torch.float64, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(own, reduce_op="sum").tolist()


def require_equal(trainer: Trainer, value: int, what: str) -> None:
    """Raises ConfigError on every process when they differ in `value`."""
    if largest(trainer, value) != -largest(trainer, -value):
        raise ConfigError(
            f"the processes of this job start at different places: this one at {what} {value}",
            expected="that all of them see the same checkpoints",
            where="paths.outputs",
            fix="a folder that every node shares",
        )
