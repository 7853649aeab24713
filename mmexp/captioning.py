"""From the command line of `mmexp.data caption` to a run, a dataset, a rewriter and the folder they fill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.assemble import Experiment, experiment_of_run, finished_run
from mmexp.config import DataCaptionConfig, Invocation, check_own, instantiate, redact, resolve
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from mmexp.data.caption import Captioning
    from mmexp.engine import RunDir

_SAMPLING = ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed")
_DECIDES = (*_SAMPLING, "template", "limit", "prompt", "continue_prompt", "min_tokens")
"""What the descriptions in a folder depend on, besides run and data."""


def caption(invocation: Invocation) -> tuple[dict[str, Any], Path]:
    """Describes, has rewritten, and writes; what an earlier call did is not done again.

    Returns:
        The report, and the file of captions.

    Raises:
        MmexpError: every mistake of the command line, a run or dataset that cannot be read, a rewriter that refuses.
    """
    from mmexp.data import caption as steps
    from mmexp.data.workfile import WorkFile

    own = check_own(DataCaptionConfig, invocation.cfg)
    run = finished_run(own.run, "run")
    exp = _experiment(own, invocation)
    rewriting = _built(own.rewrite, "rewrite", invocation) if own.rewrite else None
    dataset = exp.checked.parts["data"].build()
    out = Path(own.out).expanduser()
    plain = resolve(invocation.cfg)
    settings = {name: plain[name] for name in _DECIDES}
    settings |= {"data": redact(own.data or exp.checked.plain["data"]), "num_rows": len(dataset)}
    settings |= {"weights": [entry["files"] for entry in run.manifest().get("weights", [])]}
    if rewriting is not None:
        rewriting.check()  # before hours of describing
    work = WorkFile(out / steps.WORK, settings)
    try:
        job = steps.Captioning(dataset, steps.draw_rows(len(dataset), own.limit, own.seed), work, out)
        _describe(job, own, exp, run)
        if rewriting is not None and (pending := job.to_rewrite(own.rewrite_all)):
            _show(job.rewrite(rewriting.build(), own.rewrite_all), len(pending), "rewritten")
        return job.finish(), out / steps.ANNOTATIONS
    finally:
        work.close()


def _experiment(own: DataCaptionConfig, invocation: Invocation) -> Experiment:
    """That of the run, asked in another template and perhaps about other pictures."""
    unused = ("optim", "trainer", "logger", "evaluation", *(["data"] if own.data else []))
    exp = experiment_of_run(own.run, invocation.registered, skip=unused)
    if "image" not in exp.plan.inputs or not exp.plan.spec.width:
        raise ConfigError("this run has no image branch, or no LLM", expected="a run that answers about pictures",
                          where="run")  # fmt: skip
    given = {"template": _built(own.template, "template", invocation)}
    if own.data:
        given["data"] = _built(own.data, "data", invocation)
    return Experiment(replace(exp.checked, parts={**exp.checked.parts, **given}))


def _built(node: Mapping[str, Any], name: str, invocation: Invocation) -> Any:
    """What a node describes. Raises ConfigError also where only its settings were given, and no choice."""
    if "_target_" not in node:
        raise ConfigError(f"{', '.join(node)} of nothing", expected=f"{name}=<a choice> besides its settings",
                          where=name)  # fmt: skip
    return instantiate(node, name, invocation.registered)


def _describe(job: Captioning, own: DataCaptionConfig, exp: Experiment, run: RunDir) -> None:
    """Loads the run only where something is left to describe; its memory is free again afterwards."""
    from mmexp.engine.describe import Describer
    from mmexp.llm import Sampling

    if all(row in job.work.entries for row in job.rows):
        return
    describer = Describer(
        generator=exp.load_generator(run),
        prompt=own.prompt,
        continue_prompt=own.continue_prompt,
        min_tokens=own.min_tokens,
        sampling=Sampling(**{name: getattr(own, name) for name in _SAMPLING}),
    )
    _show(job.describe(describer, own.batch_size), len(job.rows), "described")


def _show(steps: Iterable[int], total: int, what: str) -> None:
    """Goes through all steps with a bar."""
    from rich.progress import Progress

    from mmexp.engine import console

    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        for done in steps:
            bar.update(task, completed=done)
    console.print(f"{what}: {total}")
