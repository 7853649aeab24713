"""Runs every stage of a recipe, a fresh process each: `python -m mmexp.pipeline recipe=llava15 scale=shapes`.

The same command again continues where it stopped: its stages have names that follow from the settings.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

from mmexp.config import Checked, Invocation, check, compose, launch
from mmexp.errors import ConfigError

OWN_KEYS = ("stage", "resume", "stage.init_from")


def body(invocation: Invocation) -> None:
    """Checks every stage before the first one starts; the last stage's figures are the result."""
    stages = list(invocation.cfg.stages)
    if not stages:
        raise ConfigError("no stages", expected="a recipe that lists its stages", where="stages", fix="recipe=llava15")
    for override in invocation.overrides:
        if override.split("=")[0].lstrip("+~") in OWN_KEYS:
            raise ConfigError(
                override, expected="the pipeline chooses this itself", where="command line", fix="python -m mmexp.train"
            )
    settings = [text for text in invocation.overrides if text.split("=")[0].lstrip("+~") != "run_id"]
    run_id = invocation.cfg.run_id or f"pipeline-{_digest(settings)}"
    own = ["--config-dir", invocation.config_dir] if invocation.config_dir else []
    commands: list[list[str]] = []
    parent: Path | None = None
    for stage in stages:
        overrides = [*settings, f"stage={stage}", f"run_id={run_id}"]
        overrides += [f"stage.init_from={parent}"] if parent else []
        spine = _checked(stage, overrides, invocation.config_dir).spine
        parent = Path(spine.paths.outputs) / spine.name / spine.stage.name / run_id
        commands.append(overrides)
    for number, (stage, overrides) in enumerate(zip(stages, commands, strict=True), 1):
        _say(f"stage {number} of {len(stages)}: {stage}")
        code = _in_fresh_process([sys.executable, "-m", "mmexp.train", *own, *overrides])
        if code:
            _say(f"stage {stage} ended with exit code {code}; the same command continues here")
            raise SystemExit(code)


def _checked(stage: str, overrides: list[str], config_dir: str | None) -> Checked:
    """The configuration of one stage. A mistake in the last stage must not wait until the first one has trained."""
    composed = compose("train", overrides, config_dir)
    try:
        return check(composed.cfg, composed.registered)
    except ConfigError:
        _say(f"stage {stage} cannot run, so nothing was started")
        raise


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
    launch(body, config_name="train", module="mmexp.pipeline")
