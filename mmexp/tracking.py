"""What a run is called in its trackers; entry points make it from a checked configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmexp.config import SWEEP_NAME, redact, redact_overrides
from mmexp.engine.ranks import is_main
from mmexp.engine.trackers import Identity, Tracking, new_tracking_id

if TYPE_CHECKING:
    from mmexp.assemble import Experiment
    from mmexp.engine import RunDir

EVALUATE = "evaluate"
"""Kind of job of an evaluation of its own."""
_TAGS = ("encoder", "connector", "llm", "stage")
_NO_NAME = ("recipe", "scale", "stage", "trainer", "name", "experiments", "run_id", "resume", "inexact_resume")
"""Overrides that stand in group, kind of job or id, and how it runs."""
_NO_NAME_BELOW = ("paths", "logger", "evaluation", "stage.init_from", "processor.num_workers",
                  "trainer.log_every_n_steps", "trainer.checkpoint_every_n_steps", "trainer.evaluate_every_n_steps",
                  "trainer.evaluate_samples", "trainer.evaluate_attention")  # fmt: skip
"""Those that change nothing that is computed, or only say where things are, with everything below them."""
_LONGEST_NAME = 120


def training(exp: Experiment, run: RunDir) -> Tracking:
    """The trackers of a stage. The id is kept in the manifest, so a continued run continues in the trackers too."""
    if not is_main():
        return Tracking()
    manifest = run.manifest()
    overrides = _saved_overrides(run)
    if "tracking_id" not in manifest:
        run.update_manifest(
            tracking_id=new_tracking_id(run.path.name), group=os.environ.get(SWEEP_NAME) or exp.checked.spine.name
        )
        manifest = run.manifest()
    config = redact(exp.checked.plain) | {"run_id": run.path.name, "overrides": overrides}
    identity = Identity(
        run=run,
        id=manifest["tracking_id"],
        group=manifest["group"],
        job_type=exp.checked.spine.stage.name,
        name=short_name(overrides) or run.path.name,
        tags=_tags(exp, manifest),
        config=config,
    )
    return Tracking(exp.checked.parts["logger"], identity)


def evaluation(exp: Experiment, run: RunDir, settings: Mapping[str, Any], overrides: Sequence[str]) -> Tracking:
    """The trackers of an evaluation of a finished run, in the group of that run.

    Args:
        exp: Of the run.
        run: What is evaluated.
        settings: What the evaluation was told.
        overrides: The same, as typed.
    """
    manifest = run.manifest()
    own = {"evaluates": manifest.get("tracking_id"), "run": "/".join(run.path.absolute().parts[-3:])}
    identity = Identity(
        run=run,
        id=new_tracking_id(run.path.name),
        group=manifest.get("group") or exp.checked.spine.name,
        job_type=EVALUATE,
        name=f"{EVALUATE} {short_name(_saved_overrides(run)) or run.path.name}",
        tags=_tags(exp, manifest),
        config=redact(dict(settings)) | own | {"overrides": redact_overrides(list(overrides))},
    )
    return Tracking(exp.checked.parts["logger"], identity)


def short_name(overrides: Iterable[str]) -> str:
    """Those overrides that say what is tried, such as `connector=qformer seed=2`; of a path its last part."""
    kept = []
    for text in overrides:
        key, sign, value = text.partition("=")
        plain = key.lstrip("+~")
        below = any(plain == name or plain.startswith(f"{name}.") for name in _NO_NAME_BELOW)
        if plain and plain not in _NO_NAME and not below:
            kept.append(f"{key}{sign}{value.rstrip('/').rsplit('/', 1)[-1]}")
    name = " ".join(kept)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def _tags(exp: Experiment, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The choices of the run; of one that was made without them, classes and the stage's name."""
    choices = manifest.get("choices", {})
    classes = {
        name: str(node["_target_"]).rsplit(".", 1)[-1]
        for name in _TAGS[:-1]
        if (node := exp.checked.plain.get(name)) and "_target_" in node
    }
    named = (
        classes | {"stage": exp.checked.spine.stage.name} | {name: choices[name] for name in _TAGS if name in choices}
    )
    return tuple(dict.fromkeys(str(named[name]) for name in _TAGS if named.get(name)))


def _saved_overrides(run: RunDir) -> list[str]:
    """As the run was started with; secrets were taken out when they were written."""
    file = run.path / "overrides.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return redact_overrides([line for line in lines if line])
