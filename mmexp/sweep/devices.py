"""Which devices and threads a job gets, and which sweeps would make jobs share them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from mmexp.errors import ConfigError
from mmexp.sweep.plan import Step

_OF_ANOTHER_JOB = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT",
                   "MMEXP_RUN_ID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "HYDRA_FULL_ERROR")  # fmt: skip
"""What would make a job take itself for one process of a larger one."""


def require_alone() -> None:
    """Raises ConfigError in a process that torchrun or srun has started beside others: each would start all jobs."""
    by_torchrun = int(os.environ.get("WORLD_SIZE", "1")) > 1
    by_slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if not (by_torchrun or by_slurm):
        return
    tool, count = ("torchrun", os.environ["WORLD_SIZE"]) if by_torchrun else ("SLURM", os.environ["SLURM_NTASKS"])
    raise ConfigError(
        f"a sweep in each of {count} processes of {tool}",
        expected="one process that schedules; each job starts its own",
        where="-m",
        fix="python -m mmexp.train -m ... trainer.devices=<n>; under SLURM --ntasks=1 or hydra/launcher=submitit_slurm",
    )


def visible_gpus() -> list[str]:
    """The GPUs that this process may give to jobs, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch  # counts without starting CUDA

    return [str(index) for index in range(torch.cuda.device_count())]


def require_devices(steps: Iterable[Step], n_jobs: int, gpus: list[str]) -> None:
    """Raises ConfigError when `n_jobs` jobs at once would have to share a GPU, or one has processes on other nodes."""
    steps = list(steps)
    if nodes := max((step.num_nodes for step in steps), default=1) - 1:
        raise ConfigError(
            f"{nodes + 1} nodes in a job of a sweep, which starts its processes on one machine",
            where="trainer.num_nodes",
            fix="one srun or torchrun for each cell, or jobs of one node",
        )
    most = max((step.devices for step in steps if step.is_on_gpu), default=0)
    if n_jobs == 1 or n_jobs * most <= len(gpus):
        return
    fitting = max(1, len(gpus) // most)
    raise ConfigError(
        f"n_jobs={n_jobs} with trainer.devices={most} needs {n_jobs * most} GPUs, and {len(gpus)} are visible",
        expected="a GPU of its own for each process of the jobs that run at the same time",
        where="sweep.n_jobs",
        fix=f"sweep.n_jobs={fitting}" + (", or fewer trainer.devices" if most > 1 else ""),
    )


def job_environment(step: Step, n_jobs: int, gpus: list[str], base: Mapping[str, str]) -> dict[str, str]:
    """Environment of a job: one of several has its share of threads and sees only `gpus`; one alone has all."""
    environment = {name: value for name, value in base.items() if name not in _OF_ANOTHER_JOB}
    if n_jobs == 1:
        return environment
    if step.is_on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    threads = max(1, _cores() // (n_jobs * step.devices))
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
