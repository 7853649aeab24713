"""Hydra's own sweepers and launchers: Optuna chooses what runs next, submitit where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig

from mmexp.config import Multirun, folders_of, resolvers, search_path, understand
from mmexp.errors import ConfigError
from mmexp.sweep.grid import for_the_search, value_of

RunBatch = Callable[[Sequence[Sequence[str]]], Sequence[float | None]]
"""Runs a job for each list of overrides and gives what each is judged by; None for one that failed."""
BASIC = ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
         "hydra._internal.core_plugins.basic_launcher.BasicLauncher")  # fmt: skip
"""Hydra's defaults, whose work this room does itself."""
_EXTRAS = {"optuna": "hydra_optuna_sweeper", "submitit": "hydra_submitit_launcher"}
_QUIET = ("hydra.output_subdir=null", "hydra.sweep.subdir=.", "hydra/job_logging=none", "hydra/hydra_logging=none")


class _Handover(Launcher):
    """Takes the place of the launcher of a sweeper, and gives its jobs to a function."""

    def __init__(self, run_batch: RunBatch) -> None:
        self._run_batch = run_batch

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing is needed of Hydra."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        values = self._run_batch(job_overrides)
        return [
            JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED, _return_value=value)
            for overrides, value in zip(job_overrides, values, strict=True)
        ]


def require_installed(overrides: Sequence[str]) -> None:
    """Raises ConfigError when a sweeper or launcher is named whose plugin is not installed."""
    for key in ("hydra/sweeper", "hydra/launcher"):
        chosen = (value_of(overrides, key) or "").split("_")[0]
        if chosen in _EXTRAS and (
            find_spec("hydra_plugins") is None or not find_spec(f"hydra_plugins.{_EXTRAS[chosen]}")
        ):
            raise ConfigError(f"{chosen} is not installed", where=key, fix=f'pip install "mmexp[{chosen}]"')


def search(asked: Multirun, sweep_dir: Path, first: Sequence[str], last: Sequence[str], run_batch: RunBatch) -> None:
    """Lets the sweeper that the command line names choose jobs until it has enough.

    Args:
        asked: The command line.
        sweep_dir: Where the sweeper writes what it has found.
        first: Overrides that go before the command line's.
        last: Overrides that go after it.
        run_batch: Runs jobs.
    """
    with _hydra(asked) as (app, overrides):
        line = [
            *overrides,
            *first,
            *_forced(asked, for_the_search(asked.overrides)),
            *last,
            f"hydra.sweep.dir='{sweep_dir}'",
        ]
        config = app.compose_config(asked.config_name, line, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        context = HydraContext(config_loader=app.config_loader, callbacks=Callbacks(config))
        sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=_no_task)
    holder: Any = getattr(sweeper, "sweeper", sweeper)  # plugins keep what they need heavy packages for in there
    if not isinstance(getattr(holder, "launcher", None), Launcher):
        raise ConfigError(f"{type(sweeper).__name__} hands its jobs to no launcher", where="hydra/sweeper")
    holder.launcher = _Handover(run_batch)
    sweeper.sweep(arguments=list(config.hydra.overrides.task))  # not inside of `_hydra`: jobs are composed meanwhile


def _no_task(cfg: DictConfig) -> None:
    """Never called: `_Handover` runs no task of Hydra's."""


def launcher(asked: Multirun, sweep_dir: Path, task: Callable[[DictConfig], Any]) -> Launcher:
    """The launcher that the command line names; `task` is what it runs for each job, with `hydra.job.num`."""
    own = [text for text in asked.overrides if text.startswith(("hydra.launcher", "hydra/launcher", "experiments="))]
    with _hydra(asked) as (app, overrides):
        line = [*overrides, *_forced(asked, own), f"hydra.sweep.dir='{sweep_dir}'"]
        config = app.compose_config(asked.config_name, line, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        context = HydraContext(config_loader=app.config_loader, callbacks=Callbacks(config))
        return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)


@contextmanager
def _hydra(asked: Multirun) -> Iterator[tuple[Any, list[str]]]:
    """Hydra on the folders of choices, and the overrides that make it find them and write nothing of its own."""
    resolvers.register()
    folders = folders_of(asked.config_dir)
    with hydra.initialize_config_dir(str(folders[0]), version_base="1.3"):
        yield GlobalHydra.instance().hydra, [search_path(folders), *_QUIET]


def _forced(asked: Multirun, overrides: Sequence[str]) -> list[str]:
    return understand(overrides, asked.config_name, folders_of(asked.config_dir)).overrides
