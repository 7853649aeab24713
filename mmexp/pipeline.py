"""Runs every stage of a recipe, a fresh process each: `python -m mmexp.pipeline recipe=llava15 scale=shapes`.

The same command again continues where it stopped: its stages have names that follow from the settings.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmexp.config import Checked, Invocation, Multirun, compose, launch
from mmexp.errors import ConfigError, MmexpError

if TYPE_CHECKING:
    from mmexp.sweep import Step

OWN_KEYS = ("stage", "resume", "stage.init_from")
_NAMES = ("name", "paper", "stages", "run_id", "resume", "inexact_resume", "sweep")
"""What two runs that compute the same may differ in."""


def body(invocation: Invocation) -> None:
    """Checks every stage before the first one starts; the last stage's figures are the result."""
    settings = [text for text in invocation.overrides if text.split("=")[0].lstrip("+~") != "run_id"]
    run_id = invocation.cfg.run_id or f"pipeline-{_digest(settings)}"
    steps = Planner()(settings, invocation.config_dir, run_id)
    stages = list(invocation.cfg.stages)
    for number, (stage, step) in enumerate(zip(stages, steps, strict=True), 1):
        _say(f"stage {number} of {len(stages)}: {stage}")
        code = _in_fresh_process(step.command)
        if code:
            _say(f"stage {stage} ended with exit code {code}; the same command continues here")
            raise SystemExit(code)


def sweep(asked: Multirun) -> int:
    """A whole recipe for each combination of swept values; what their stages have in common is trained once."""
    from mmexp.sweep import run_sweep

    return run_sweep(asked, Planner())


class Planner:
    """From the overrides of a recipe to the stages of one job, each checked.

    Two jobs share a stage where all that decides it is equal: its resolved configuration without names, and the
    same of the stage that it starts from.
    """

    def __init__(self) -> None:
        self._known: dict[str, Step] = {}

    def __call__(self, overrides: Sequence[str], config_dir: str | None, run_id: str) -> list[Step]:
        """The steps in their order.

        Raises:
            ConfigError: there are no stages, one cannot run, or an override is the pipeline's own to give.
        """
        from mmexp.sweep import plan_stage

        stages = list(compose("train", overrides, config_dir).cfg.stages)
        if not stages:
            raise ConfigError(
                "no stages", expected="a recipe that lists its stages", where="stages", fix="recipe=llava15"
            )
        _require_free(overrides)
        steps: list[Step] = []
        identity = ""
        for stage in stages:
            parent = [f"stage.init_from={steps[-1].run}"] if steps else []
            try:
                step, checked = plan_stage([*overrides, f"stage={stage}", *parent], config_dir, run_id)
            except MmexpError as error:
                raise ConfigError(f"stage {stage} cannot run, so nothing was started\n{error.render()}") from error
            identity = _identity(checked, identity)
            steps.append(self._known.setdefault(identity, step))
        return steps


def _require_free(overrides: Sequence[str]) -> None:
    for override in overrides:
        if override.split("=")[0].lstrip("+~") in OWN_KEYS:
            raise ConfigError(
                override, expected="the pipeline chooses this itself", where="command line", fix="python -m mmexp.train"
            )


def _identity(checked: Checked, parent: str) -> str:
    """Equal for two stages that train the same from the same.

    Args:
        checked: The stage.
        parent: Identity of the stage before it; empty for the first one, which may start from a path.
    """
    plain = {key: value for key, value in checked.plain.items() if key not in _NAMES}
    start = parent or plain["stage"].get("init_from")
    plain["stage"] = {key: value for key, value in plain["stage"].items() if key != "name"} | {"init_from": start}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _in_fresh_process(command: list[str]) -> int:
    """Exit code of the command.

    SIGTERM, SIGUSR1 and SIGUSR2 to the pipeline go on to it, so that it can save itself; they end the pipeline even
    where the stage was about to finish.

    A fresh process, because Lightning's child processes copy their parent's arguments and would start the whole
    pipeline again; and because memory of one stage is no use to the next.
    """
    stopped: list[int] = []
    with subprocess.Popen(command) as child:

        def hand_on(signum: int, frame: object) -> None:
            stopped.append(signum)
            child.send_signal(signum)

        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(signum, hand_on)
        while True:
            try:
                return child.wait() or (128 + stopped[0] if stopped else 0)
            except KeyboardInterrupt:  # the terminal sent it to the child too, which saves and ends
                continue


def _say(text: str) -> None:
    """A line of the pipeline's own, on standard error, before the stage's own output."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _digest(overrides: list[str]) -> str:
    """A name for this pipeline: equal settings, equal name."""
    return hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]


if __name__ == "__main__":
    launch(body, config_name="train", module="mmexp.pipeline", sweep=sweep)
