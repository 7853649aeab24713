"""From a run directory to what answers: chat, server and outside evaluations begin here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmexp.assemble import experiment_of_run, finished_run
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from mmexp.engine import Generator

_UNUSED = ("data", "optim", "trainer", "logger", "evaluation")


def generator_of_run(run_dir: str, registered: frozenset[str]) -> Generator:
    """The model of a finished run, ready to answer, on a GPU where there is one.

    Args:
        run_dir: The run directory.
        registered: What its configuration may name.

    Raises:
        CheckpointError: there is no run, or it is damaged.
        ConfigError: it has no LLM.
    """
    run = finished_run(run_dir, "run")
    experiment = experiment_of_run(run_dir, registered, skip=_UNUSED)
    if not experiment.plan.spec.width:
        raise ConfigError("this run has no LLM, so it answers nothing", where="run", fix="a run with an LLM")
    return experiment.load_generator(run)
