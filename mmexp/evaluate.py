"""Figures of a finished run: `python -m mmexp.evaluate run=outputs/llava15/... [evaluation=shapes_vqa]`."""

from __future__ import annotations

from mmexp.config import Invocation, launch


def body(invocation: Invocation) -> None:
    """Runs the run's own benchmarks, or those that `evaluation=` names, and renews results and report."""
    from dataclasses import replace

    from mmexp.assemble import experiment_of_run, finished_run
    from mmexp.config import instantiate, resolve
    from mmexp.engine import Tracking, setup_logging
    from mmexp.engine.log import console
    from mmexp.engine.predict import evaluate_run
    from mmexp.evaluation.asking import Share
    from mmexp.report import results_table, write_report
    from mmexp.tracking import evaluation

    cfg = resolve(invocation.cfg)
    run = finished_run(cfg["run"], "run")
    setup_logging(run.path / "run.log")
    exp = experiment_of_run(cfg["run"], invocation.registered, skip=("data", "optim", "trainer"))
    chosen = cfg.get("evaluation")
    benchmarks = instantiate(chosen, "evaluation", invocation.registered) if chosen else exp.benchmarks
    if cfg["limit"] is not None:
        benchmarks = {name: replace(benchmark, limit=cfg["limit"]) for name, benchmark in benchmarks.items()}
    share = None if cfg["share"] is None else Share.parse(cfg["share"])
    if share is not None:
        evaluate_run(exp.load_generator(run), benchmarks, run, cfg["splits"], share)
        console.print(
            f"share {share.index} of {share.count} is kept; without share= they become figures", soft_wrap=True
        )
        return
    told = {key: cfg.get(key) for key in ("evaluation", "splits", "limit")}
    with evaluation(exp, run, told, invocation.overrides) if cfg["track"] else Tracking() as tracking:
        results = evaluate_run(exp.load_generator(run), benchmarks, run, cfg["splits"])
        asked = {(split, name) for name, b in benchmarks.items() for split in cfg["splits"] or b.splits}
        renewed = {
            split: {name: metrics for name, metrics in group.items() if (split, name) in asked}
            for split, group in results.items()
        }
        tracking.open()
        tracking.log_results(renewed, run.path, run.manifest().get("step", 0))
        console.print(results_table(results))
        console.print(f"report  {write_report(run.path)}", soft_wrap=True)


if __name__ == "__main__":
    launch(body, config_name="evaluate", module="mmexp.evaluate")
