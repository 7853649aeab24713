"""Trains one stage, from its parts to finished weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmexp.contracts import Dataset
from mmexp.data import (
    Collator,
    MultimodalDataModule,
    OrderSettings,
    RunOrder,
    build_order,
    checked,
    require_trainable,
)
from mmexp.engine import checkpoint
from mmexp.engine.bad_samples import BadSamples
from mmexp.engine.callbacks import Checkpoints, MetricsLog
from mmexp.engine.chain import save_weights
from mmexp.engine.features import FeatureCache
from mmexp.engine.heartbeat import Heartbeat, lost_process
from mmexp.engine.manifest import RunDir
from mmexp.engine.memory import is_out_of_memory, out_of_memory
from mmexp.engine.module import TrainingModule
from mmexp.engine.moved import MovedCheck
from mmexp.engine.order_log import OrderLog
from mmexp.engine.pace import peak_memory_mb
from mmexp.engine.progress import TrainingProgress
from mmexp.engine.ranks import is_main
from mmexp.engine.recipe import Recipe
from mmexp.engine.record import ResumeRecord
from mmexp.engine.signals import Interrupted, requeue
from mmexp.engine.strategy import plain_module
from mmexp.engine.validation import Validation
from mmexp.page import spent_before
from mmexp.tuning import TrainedPart

if TYPE_CHECKING:
    from mmexp.engine.job import StageJob

log = logging.getLogger(__name__)


def fit(job: StageJob, on_start: Callable[[list[TrainedPart]], None]) -> TrainingModule:
    """Trains a stage, or continues it from its newest checkpoint, and writes the weights it hands on.

    Args:
        job: The stage.
        on_start: Gets the table of what trains before the first step.

    Returns:
        The module, in eval mode.

    Raises:
        Interrupted: a signal asked to stop; the run is saved and can be continued.
        LostProcess: another process of the job has died or does not answer.
        OutOfMemory: a step takes more memory than there is.
    """
    started = time.monotonic()
    bad_samples = BadSamples(job.run.path / "bad_samples.jsonl")
    features = FeatureCache.of(job)
    dataset = _checked_data(job, bad_samples)
    order = build_order(dataset, job.plan.processor, _order_settings(job))
    num_steps = job.num_steps(order)
    module = TrainingModule(job.plan, job.objective, job.optim, _recipe(job, num_steps), job.init_from)
    datamodule = _datamodule(job, dataset, order, num_steps)
    module.features = features
    if is_main():
        for folder in (job.run.checkpoints, job.run.weights):
            checkpoint.sweep(folder)
    resume = checkpoint.newest(job.run.checkpoints)
    derived = _derived(job, dataset, order, num_steps)
    note = job.run.update_manifest if is_main() else _no_note
    note(status="running", derived=derived, resumed_from=resume.name if resume else None)
    if resume:
        log.info("continuing from %s", resume.name)
    heartbeat = Heartbeat()
    callbacks = [heartbeat, bad_samples, *([features] if features else []), *_callbacks(job, on_start)]
    trainer = job.trainer.build(job.run.path, num_steps, job.accumulate, callbacks)
    job.tracking.open(derived, job.run.path / "metrics.jsonl", checkpoint.step_of(resume) if resume else 0)
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=str(resume) if resume else None, weights_only=True)
    except Interrupted as stop:
        note(status="interrupted", step=stop.step)
        if is_main():
            requeue(job.run, stop)
        raise
    except BaseException as error:
        note(status="failed", step=trainer.global_step)
        if lost := lost_process(error, heartbeat, trainer.world_size):
            raise lost from error
        if is_out_of_memory(error):
            raise out_of_memory(error, job, trainer.global_step, module.load) from error
        raise
    module = plain_module(trainer, module)
    if is_main():
        kept: dict[str, Any] = {"feature_cache": features.found} if features else {}
        validation_s = sum(callback.seconds for callback in callbacks if isinstance(callback, Validation))
        kept |= {"validation_s": round(validation_s, 1)} if validation_s else {}
        train_s = round(time.monotonic() - started - validation_s, 1)
        _finish(job, module, datamodule, **kept, step=trainer.global_step, train_s=train_s)
    return module.eval()


def _no_note(**values: Any) -> None:
    """Only the first process writes the manifest."""


def _finish(job: StageJob, module: TrainingModule, datamodule: MultimodalDataModule, **facts: Any) -> None:
    """Weights and figures of a run that has ended well."""
    save_weights(module.parts(), module.changed, job.run)
    job.run.update_manifest(
        status="trained",
        **facts,
        parts=[vars(part) for part in module.table()],
        peak_memory_mb=peak_memory_mb(),
        num_skipped_steps=module.num_skipped,
        padding_waste=round(datamodule.padding_waste, 4),
        dropped=datamodule.drop_counts.state()["dropped_by_dataset"],
        num_dropped_turns=datamodule.drop_counts.num_dropped_turns,
        num_cut_answer_tokens=datamodule.drop_counts.num_cut_tokens,
    )
    log.info("%.1f %% of all positions were padding", 100 * datamodule.padding_waste)


def _checked_data(job: StageJob, bad_samples: BadSamples) -> Dataset:
    """The data, after a look at it."""
    cache = job.cache / "checks" if job.cache else None
    dataset, report = checked(job.data, job.plan.processor, job.check_rows, cache)
    if is_main():
        bad_samples.add(report.bad_media)
    require_trainable(report, job.bad_media_cap)
    if cuts := report.cuts():
        log.warning("%s", cuts)
    return dataset


def _order_settings(job: StageJob) -> OrderSettings:
    return OrderSettings(
        seed=job.seed,
        micro_batch_size=job.micro_batch_size,
        accumulate=job.accumulate,
        world_size=job.trainer.world_size,
        order=job.order,
        row=job.row,
        max_shared=job.max_shared,
        shuffle_window=job.shuffle_window,
        packing_window=job.packing_window,
        cache=job.cache / "lengths" if job.cache else None,
        num_workers=job.num_workers,
    )


def _recipe(job: StageJob, num_steps: int) -> Recipe:
    present = {name: tree for name, tree in job.policy.items() if job.plan.inputs or name == "llm"}
    return Recipe(
        policy=present,
        lora=job.lora,
        live_dropout=job.live_dropout,
        new_tokens=job.new_tokens,
        allow_random_frozen=job.allow_random_frozen,
        lr=job.lr,
        lr_by_part=job.lr_by_part,
        layer_decay=job.layer_decay,
        weight_decay=job.weight_decay,
        warmup_ratio=job.warmup_ratio,
        grad_clip=job.grad_clip,
        num_steps=num_steps,
        accumulate=job.accumulate,
        cast_frozen=job.trainer.cast_frozen,
        seed=job.seed,
        gradient_checkpointing=job.trainer.gradient_checkpointing,
        compiled=job.trainer.compile,
    )


def _datamodule(job: StageJob, dataset: Dataset, order: RunOrder, num_steps: int) -> MultimodalDataModule:
    return MultimodalDataModule(
        dataset=dataset,
        processor=job.plan.processor,
        collator=Collator(pad_id=job.plan.tokenizer.pad_id, row=job.row, capacity=job.plan.max_length_tokens),
        micro_batch_size=job.micro_batch_size,
        num_micro_batches=num_steps * job.accumulate,
        seed=job.seed,
        num_workers=job.num_workers,
        order=order,
        bad_media_cap=job.bad_media_cap,
        inexact=job.inexact,
        worker_timeout_s=job.worker_timeout_s,
    )


def _callbacks(job: StageJob, on_start: Callable[[list[TrainedPart]], None]) -> list[Any]:
    bar = TrainingProgress(job.label, on_start)
    every, keep = job.trainer.checkpoint_every_n_steps, job.trainer.keep_checkpoints
    record = [OrderLog(job.run.path / "data_order.jsonl")] if job.log_ids else []
    metrics = MetricsLog(job.run.path / "metrics.jsonl", job.trainer.log_every_n_steps, bar, job.speed, job.tracking)
    checkpoints = Checkpoints(job.run.checkpoints, every, keep)
    return [
        ResumeRecord(job.inexact, lambda found: _note_inexact(job, found)),
        *record,  # before the checkpoints: a saved micro-batch stands in the record
        metrics,
        checkpoints,
        *([Validation(job, metrics, checkpoints)] if job.trainer.evaluate_every_n_steps else []),
        MovedCheck(),
    ]


def _note_inexact(job: StageJob, found: list[str]) -> None:
    log.warning("this resume is not exact: %s", "; ".join(found))
    if is_main():
        job.run.update_manifest(inexact=[*job.run.manifest().get("inexact", []), *found])


def _derived(job: StageJob, dataset: Dataset, order: RunOrder, num_steps: int) -> dict[str, Any]:
    return {
        "num_samples": len(dataset),
        "num_rows_per_epoch": order.num_rows(1),
        "order": order.identity,
        "num_steps": num_steps,
        "accumulate": job.accumulate,
        "soft_tokens": {modality: branch.num_soft_tokens for modality, branch in job.plan.inputs.items()},
        "llm_width": job.plan.spec.width,
        "vocab_size": job.plan.spec.vocab_size,
        "before": spent_before(start.path for start in job.init_from if isinstance(start, RunDir)),
    }
