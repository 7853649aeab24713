"""Benchmarks answered by the model that is being trained, between two of its steps and without a trace in it.

Lightning types its hooks for any module; these take a `TrainingModule`, hence `type: ignore[override]`.
"""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from rich.console import Console

from mmexp.engine.log import console
from mmexp.engine.metrics_file import has_validation, put_validation
from mmexp.engine.predict import Generator
from mmexp.engine.ranks import largest
from mmexp.engine.sharded import ShardedStrategy
from mmexp.engine.trackers import figures_of
from mmexp.evaluation import BenchmarkConfig, evaluate
from mmexp.evaluation.asking import Share
from mmexp.evaluation.runner import load_samples

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor

    from mmexp.contracts import Sample
    from mmexp.engine.callbacks import Checkpoints, MetricsLog
    from mmexp.engine.job import StageJob
    from mmexp.engine.module import TrainingModule
    from mmexp.evaluation.runner import Results

log = logging.getLogger(__name__)

_NO_BAR = Console(force_terminal=False, quiet=True)
"""The bar of training is on the terminal already."""


class Validation(Callback):
    """Evaluates every n optimizer steps; a run that is continued makes up for an evaluation that it was stopped in.

    The last step is left to `validate_at_the_end`, which needs no Trainer: it has none when a run is continued behind
    its last step. Where each process has a whole model, each answers a share; where weights are shared out, all of them
    answer everything together; what compares all pictures with all texts is left to the first one. Predictions go to
    `validation/step_<step>/predictions` of the run.

    Args:
        job: The stage.
        metrics: Gets the figures.
        checkpoints: Saves, and stops the run, where a signal comes meanwhile.
    """

    def __init__(self, job: StageJob, metrics: MetricsLog, checkpoints: Checkpoints) -> None:
        assert job.trainer.evaluate_every_n_steps is not None
        self.job, self.metrics, self.checkpoints = job, metrics, checkpoints
        self.every: int = job.trainer.evaluate_every_n_steps
        self.benchmarks = _asked(job)
        self.seconds = 0.0
        """All that it has taken."""
        if not self.benchmarks:
            log.warning("trainer.evaluate_every_n_steps has no effect: no benchmark belongs to this stage")

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        step = trainer.global_step
        is_missing = trainer.is_global_zero and step > 0 and not has_validation(self.metrics.file, step)
        if self._is_due(trainer, step) and largest(trainer, is_missing):
            if isinstance(trainer.strategy, ShardedStrategy):
                trainer.strategy.prepare_answers(pl_module)
            self._validate(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *args: Any) -> None:  # type: ignore[override]
        if not trainer.fit_loop._should_accumulate() and self._is_due(trainer, trainer.global_step):
            self._validate(trainer, pl_module)

    def _is_due(self, trainer: Trainer, step: int) -> bool:
        return step % self.every == 0 and step != trainer.max_steps and bool(self.benchmarks)

    def _validate(self, trainer: Trainer, module: TrainingModule) -> None:
        began, step = time.perf_counter(), trainer.global_step
        folder = _folder(self.job, step)
        log.info("step %d: evaluating", step)
        if trainer.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)  # of a try that was stopped
        trainer.strategy.barrier()
        results: Results = {}
        with _undisturbed(trainer, module):
            for name, benchmark in self.benchmarks.items():
                for split, found in self._figures(trainer, module, name, benchmark, folder).items():
                    results.setdefault(split, {}).update(found)
            pictures = self._draw(module, folder / "attention") if trainer.is_global_zero else []
        if self.checkpoints.signals.agreed(trainer):  # some process has not answered everything
            self.checkpoints.save_if_due(trainer, module)
        self.metrics.add_validation(figures_of(results), step)
        self.job.tracking.log_results(results, folder, step)
        if pictures:
            self.job.tracking.log_pictures("attention", pictures, step)
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.metrics.leave_out(seconds)

    def _draw(self, module: TrainingModule, folder: Path) -> list[Path]:
        """Files with the attention of a few answers, the same samples every time; none where a signal came."""
        draw, count = self.job.draw, self.job.trainer.evaluate_attention
        name = next((name for name, benchmark in self.benchmarks.items() if benchmark.needs == "generate"), None)
        if draw is None or not count or name is None or self.checkpoints.signals.noted:
            return []
        benchmark, model = self.benchmarks[name], module.model
        samples = load_samples(name, benchmark, next(iter(benchmark.splits)))
        shown = (sample for sample in samples if any(turn.media for turn in sample.turns))
        return [
            file
            for sample in islice(shown, count)
            for file in draw(model, module.plan, sample, folder)  # type: ignore[arg-type]  # it is built
        ]

    def _figures(
        self, trainer: Trainer, module: TrainingModule, name: str, benchmark: BenchmarkConfig, folder: Path
    ) -> Results:
        """Of one benchmark; empty on processes other than the first, and where a signal came."""
        generator = Generator(module.model, module.plan, module.objective)  # type: ignore[arg-type]  # it is built
        is_together = isinstance(trainer.strategy, ShardedStrategy)
        noted: Callable[[], int] = lambda: self.checkpoints.signals.noted  # noqa: E731
        stop = (lambda: self.checkpoints.signals.agreed(trainer)) if is_together else noted
        predict: Any = _Stoppable(generator.predictor(benchmark), module.answering, stop)
        boxes = module.plan.processor.boxes

        def ask(out_dir: Path, share: Share | None = None) -> Results:
            try:
                return evaluate(name, benchmark, predict, out_dir, _NO_BAR, None, boxes, str(folder), share)
            except _StopAsked:
                return {}

        if trainer.world_size > 1 and not is_together:
            ask(folder, Share(trainer.global_rank, trainer.world_size))
            if self.checkpoints.signals.agreed(trainer):  # it also waits for the others
                return {}
        if trainer.is_global_zero:
            return ask(folder)
        if is_together:
            with tempfile.TemporaryDirectory() as unread:
                ask(Path(unread))
        return {}


def validate_at_the_end(job: StageJob, generator: Generator, step: int) -> None:
    """The last point of the curves, where the evaluation of a finished run asks more samples than those between steps.

    Again is harmless: what stands in metrics.jsonl is not asked again.
    """
    file, folder = job.run.path / "metrics.jsonl", _folder(job, step)
    if not job.benchmarks or job.trainer.evaluate_samples is None or has_validation(file, step):
        return
    generator.model.eval()
    results: Results = {}
    for name, benchmark in _asked(job).items():
        predict, boxes = generator.predictor(benchmark), generator.plan.processor.boxes
        for split, found in evaluate(name, benchmark, predict, folder, console, None, boxes).items():
            results.setdefault(split, {}).update(found)
    put_validation(file, figures_of(results), step)
    job.tracking.log_results(results, folder, step)


class _StopAsked(Exception):
    """A signal has come."""


class _Stoppable:
    """A predictor of either kind that runs as the module wants, and stops between two calls.

    Args:
        predictor: Answers, or compares.
        run: Calls it.
        stop: Whether to stop.
    """

    def __init__(self, predictor: Any, run: Callable[..., Any], stop: Callable[[], int]) -> None:
        self._predictor, self._run, self._stop = predictor, run, stop

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        return self._call(self._predictor, samples)

    def similarities(self, samples: Sequence[Sample], texts: Sequence[str], batch_size: int) -> Tensor:
        return self._call(self._predictor.similarities, samples, texts, batch_size)

    def agreement(self, pairs: Tensor, batch_size: int) -> Tensor | None:
        return self._call(self._predictor.agreement, pairs, batch_size)

    def _call(self, call: Callable[..., Any], *args: Any) -> Any:
        if self._stop():
            raise _StopAsked
        return self._run(call, *args)


def _asked(job: StageJob) -> dict[str, BenchmarkConfig]:
    """The benchmarks without baselines, on at most as many samples of each split as the trainer's cap."""
    cap = job.trainer.evaluate_samples
    found = {}
    for name, benchmark in job.benchmarks.items():
        limits = [limit for limit in (benchmark.limit, cap) if limit is not None]
        found[name] = replace(benchmark, baselines=(), limit=min(limits, default=None))
    return found


def _folder(job: StageJob, step: int) -> Path:
    return job.run.path / "validation" / f"step_{step:08d}"


@contextmanager
def _undisturbed(trainer: Trainer, module: TrainingModule) -> Iterator[None]:
    """The model in eval mode, in the precision of training and uncompiled; then everything as it was."""
    modes = [(part, part.training) for part in module.modules()]
    devices = [module.device] if module.device.type == "cuda" else []
    drawn = random.getstate()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(trainer.precision_plugin.forward_context())
        if module.recipe.compiled:  # answers grow, and each length could compile anew until blocks stay uncompiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            module.eval()
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            random.setstate(drawn)
            if isinstance(trainer.strategy, ShardedStrategy):
                trainer.strategy.release(module)
