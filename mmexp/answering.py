"""From a run directory to what answers: chat, server and outside evaluations begin here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmexp.assemble import experiment_of_run, finished_run
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from mmexp.assemble import Experiment
    from mmexp.engine import Generator, RunDir

_UNUSED = ("data", "optim", "trainer", "logger", "evaluation")


def answering_run(path: str, registered: frozenset[str], skip: tuple[str, ...] = _UNUSED) -> tuple[RunDir, Experiment]:
    """A finished run whose model writes answers, and its experiment; no weights are read yet.

    Args:
        path: The run directory.
        registered: What its configuration may name.
        skip: What of the configuration is not looked at.

    Raises:
        CheckpointError: there is no run, or it is damaged.
        ConfigError: it has no LLM.
    """
    run = finished_run(path, "run")
    experiment = experiment_of_run(path, registered, skip)
    if not experiment.plan.spec.width:
        raise ConfigError(f"{path} has no LLM, so it answers nothing", where="run", fix="a run with an LLM")
    return run, experiment


def generator_of_run(path: str, registered: frozenset[str]) -> Generator:
    """The model of such a run, ready to answer, on a GPU where there is one. Arguments and errors as above."""
    run, experiment = answering_run(path, registered)
    return experiment.load_generator(run)
