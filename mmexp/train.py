"""Trains one stage, evaluates it and writes its report: `python -m mmexp.train connector=linear stage=align`."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from mmexp.config import Invocation, Multirun, launch

if TYPE_CHECKING:
    from mmexp.assemble import Experiment
    from mmexp.engine import StageJob, TrainingModule
    from mmexp.evaluation.runner import Results


def body(invocation: Invocation) -> None:
    """Everything heavy is imported here, so that `--cfg job` and `--help` answer at once."""
    from mmexp.engine import Interrupted, LostProcess
    from mmexp.engine.ranks import is_main

    try:
        train(invocation)
    except Interrupted as stop:
        if is_main():
            sys.stderr.write(f"stopped by {stop}; everything is saved, the same run_id or resume=<run> continues\n")
        raise SystemExit(128 + stop.signum) from None
    except LostProcess as lost:
        sys.stderr.write(f"{lost}\nthe same command continues from the newest checkpoint\n")
        raise SystemExit(1) from None


def train(invocation: Invocation) -> None:
    """The whole of a stage. A run that was finished before is left as it is."""
    from mmexp.assemble import experiment
    from mmexp.engine import console, fit, setup_logging
    from mmexp.engine.pace import peak_memory_mb
    from mmexp.engine.ranks import is_main
    from mmexp.present import finish, show_plan, show_trained
    from mmexp.present_size import speed_of
    from mmexp.report import write_report
    from mmexp.tracking import training

    started = time.monotonic()
    setup_logging()
    exp = experiment(invocation)
    exp.require_fit()
    run = exp.open_run()
    if run.finished:
        console.print(f"already finished: {run.path}", soft_wrap=True)
        return
    setup_logging(run.path / "run.log")
    if is_main():
        show_plan(exp, run)
    with training(exp, run) as tracking:
        job = replace(exp.job(run), speed=speed_of(exp) if is_main() else None, tracking=tracking)
        module = fit(job, show_trained)
        if not is_main():
            return
        results = evaluated(exp, job, module)
        run.update_manifest(
            status="finished", wall_s=round(time.monotonic() - started, 1), peak_memory_mb=peak_memory_mb()
        )
        tracking.log_results(results, run.path, run.manifest()["step"])
        tracking.log_weights(run.weights)
        finish(run, results, write_report(run.path))


def evaluated(exp: Experiment, job: StageJob, module: TrainingModule) -> Results:
    """The figures of a module that has just been trained."""
    from mmexp.engine.metrics_file import put_validation
    from mmexp.engine.predict import evaluate_run
    from mmexp.engine.signals import stopping_at_once
    from mmexp.engine.trackers import figures_of
    from mmexp.engine.validation import validate_at_the_end

    run, step = job.run, job.run.manifest()["step"]
    if module.has_cast:  # answers come from the base weights, as they do in every later evaluation
        module.model = None
        generator = exp.load_generator(run)
    else:
        assert module.model is not None
        generator = exp.generator(module.model, module.objective)  # Lightning has left it on the CPU
    with stopping_at_once(run, step):
        validate_at_the_end(job, generator, step)
        results = evaluate_run(generator, exp.benchmarks, run)
        if job.benchmarks and job.trainer.evaluate_samples is None:  # the same samples as between steps
            put_validation(run.path / "metrics.jsonl", figures_of(results), step)
    return results


def sweep(asked: Multirun) -> int:
    """A run for each combination of swept values."""
    from mmexp.sweep import plan_train, run_sweep

    return run_sweep(asked, plan_train)


if __name__ == "__main__":
    launch(body, config_name="train", module="mmexp.train", sweep=sweep)
