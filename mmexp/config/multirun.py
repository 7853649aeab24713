"""What `-m` was given, and the settings of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmexp.errors import ConfigError

SWEEP_NAME = "MMEXP_SWEEP"
"""Environment variable in which a sweep tells its jobs its name; trackers group them by it."""


@dataclass(frozen=True, kw_only=True)
class Multirun:
    """What the user asked for with `-m`."""

    module: str
    """What `python -m` runs."""
    config_name: str
    """Primary configuration of each job."""
    overrides: list[str]
    """As typed, sweeps among them."""
    config_dir: str | None
    """The user's own folder of choices."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How `-m` schedules jobs; single runs do not look at it."""

    n_jobs: int = 1
    """Jobs that run at the same time on this machine. With GPUs each job gets its own; CPU threads are shared out."""
    warm_start: bool = True
    """On Linux, jobs of one process on the CPU are forked from one that has imported everything already, which saves
    each of them about 7 s; false starts a new interpreter for each."""
    grids: Sequence[Mapping[str, Any]] = ()
    """For what is not one product: each of these, `{connector: qformer, connector.num_queries: "4,16"}`, is crossed
    with `hydra.sweeper.params`, and the sweep is all of them."""
    dir: str | None = None
    """Directory of the sweep; one that is there is continued. Null: `<paths.outputs>/sweeps/<name>-<date-time>`."""
    resume: str | None = None
    """Directory of a sweep to continue: finished jobs are left as they are, all others run."""
    metric: str | None = None
    """What a job is judged by, as in results.json: `<split>/<benchmark>/<metric>`, or the name of a benchmark's metric
    without its split where one split has it, or a value of metrics.jsonl such as `train/loss`. Optuna needs it."""

    def __post_init__(self) -> None:
        """Raises ConfigError for fewer than one job, and for two directories."""
        if self.n_jobs < 1:
            raise ConfigError(f"{self.n_jobs}", expected="at least 1", where="n_jobs")
        if self.dir is not None and self.resume is not None:
            raise ConfigError("dir and resume are both given", expected="one of them", where="resume")
