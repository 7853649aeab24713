"""What happens around the steps: the record of metrics, and checkpoints.

Lightning types its hooks for any module; these take a `TrainingModule`, hence `type: ignore[override]`.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from mmexp.engine import checkpoint
from mmexp.engine.metrics_file import drop_after, line_of, write_csv
from mmexp.engine.pace import Speed, num_media, peak_memory_gb
from mmexp.engine.ranks import largest, require_equal, total
from mmexp.engine.signals import Interrupted, StopSignals
from mmexp.errors import CheckpointError, DataError, MmexpError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from mmexp.contracts import Batch
    from mmexp.engine.module import TrainingModule
    from mmexp.engine.progress import TrainingProgress
    from mmexp.engine.trackers import Tracking

log = logging.getLogger(__name__)

_FAILED_SAVES = 3
"""So many checkpoints in a row that cannot be written end a run."""


class MetricsLog(Callback):
    """Keeps detached values and writes them every n steps to metrics.jsonl and to the trackers, and moves the bar.

    One line of metrics.jsonl is one record; a resumed run continues the file. Losses are means over the supervised
    tokens since the last record, so nothing depends on how tokens fell into micro-batches.
    """

    def __init__(
        self, file: Path, every_n_steps: int, bar: TrainingProgress, speed: Speed | None, tracking: Tracking
    ) -> None:
        self.file, self.every, self.bar, self.speed, self.tracking = file, every_n_steps, bar, speed, tracking
        self.record: dict[str, float] = {}
        """The last record."""
        self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        if trainer.is_global_zero:
            drop_after(self.file, trainer.global_step)
        self._stream = self.file.open("a", encoding="utf-8") if trainer.is_global_zero else None
        self._last_step = self._shown = trainer.global_step
        trainer.datamodule.take_waited_s()  # type: ignore[attr-defined]  # before the first step nothing is measured
        self._reset()
        self.bar.start(trainer, pl_module)

    def on_train_batch_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        trainer: Trainer,
        pl_module: TrainingModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        losses = pl_module.latest
        assert losses is not None
        for name, value in losses.sums.items():
            self._sums[name] = self._sums[name] + value.detach()
            self._counts[name] += losses.counts[name]
        self._tokens += batch.num_tokens
        self._samples += len(batch.ids)
        self._media += num_media(batch)
        self._padding += batch.input_ids.numel() - batch.num_tokens
        step = trainer.global_step
        if step == self._shown:  # in the middle of an optimizer step
            return
        self._shown = step
        if step % self.every == 0 or step == trainer.max_steps or step == 1:
            self._write(trainer, pl_module, losses.report)
            self._last_step = step
        self.bar.advance(step, self.record)

    def on_train_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: TrainingModule, exception: BaseException) -> None:  # type: ignore[override]
        self.close()

    def close(self) -> None:
        """Ends the bar and metrics.jsonl, and writes the same as metrics.csv."""
        self.bar.stop()
        if getattr(self, "_stream", None) is not None:
            stream, self._stream = self._stream, None
            assert stream is not None
            stream.close()
            write_csv(self.file)

    def add_validation(self, figures: Mapping[str, float], step: int) -> None:
        """Writes what benchmarks found at a step; there are no figures on processes other than the first."""
        if figures:
            self._append({"step": step, **figures})
            self.bar.note_validation(figures)

    def leave_out(self, seconds: float) -> None:
        """Time that was none of training."""
        self._since += seconds

    def _append(self, record: Mapping[str, float]) -> None:
        if self._stream is not None:
            self._stream.write(line_of(record))
            self._stream.flush()

    def _write(self, trainer: Trainer, module: TrainingModule, report: Any) -> None:
        seconds = time.perf_counter() - self._since
        steps = max(trainer.global_step - self._last_step, 1)
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        sums, tokens, samples, padding, media = self._over_all(trainer)
        total = (
            sum(module.latest.weights.get(name, 1.0) * value for name, value in sums.items()) if module.latest else 0
        )
        record: dict[str, float] = {"step": trainer.global_step, "train/loss": total}
        if len(sums) > 1:
            record |= {f"train/loss_{name}": value for name, value in sums.items()}
        record |= {f"train/{name}": float(value) for name, value in report.items()}
        for group in trainer.optimizers[0].param_groups:
            name = f"lr/{group['name'].split('/block')[0]}"  # of the blocks of a part the fastest
            record[name] = max(record.get(name, 0.0), group["lr"])
        record |= {
            "train/grad_norm": module.last_norm,
            **_part_norms(module),
            "time/step_s": seconds / steps,
            "time/data_wait": datamodule.take_waited_s() / seconds,
            "memory/peak_gb": peak_memory_gb(),
            "data/tokens_per_s": tokens / seconds,
            "data/samples_per_s": samples / seconds,
            "data/media_per_s": media / seconds,
            "data/padding_waste": padding / max(padding + tokens, 1),
        }
        if self.speed is not None:
            record["time/mfu"] = self.speed.mfu(tokens / seconds, trainer.world_size)
        record |= datamodule.drop_counts.metrics()
        self.record = record
        self._append(record)
        self.tracking.log({k: v for k, v in record.items() if k != "step"}, trainer.global_step)
        self._reset()

    def _over_all(self, trainer: Trainer) -> tuple[dict[str, float], float, float, float, float]:
        """Mean losses, tokens, samples, padding and media since the last record, of all processes."""
        names = list(self._sums)
        mine = [*(float(self._sums[name]) for name in names), *(self._counts[name] for name in names)]
        found = total(trainer, [*mine, self._tokens, self._samples, self._padding, self._media])
        means = {name: found[at] / max(found[len(names) + at], 1) for at, name in enumerate(names)}
        return means, found[-4], found[-3], found[-2], found[-1]

    def _reset(self) -> None:
        self._sums: dict[str, Any] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._tokens = self._samples = self._padding = self._media = 0
        self._since = time.perf_counter()


class Checkpoints(Callback):
    """Saves at optimizer-step boundaries: every n steps, at the end, and when a signal asks the run to stop."""

    def __init__(self, folder: Path, every_n_steps: int, keep: int = 2) -> None:
        self.folder, self.every, self.keep = folder, every_n_steps, keep
        self.signals = StopSignals()
        self._saved_at = -1
        self._failed = 0

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        require_equal(trainer, trainer.global_step, "step")
        self._saved_at = trainer.global_step
        self.signals.install()

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *args: Any) -> None:  # type: ignore[override]
        if not trainer.fit_loop._should_accumulate():
            self.save_if_due(trainer, pl_module)

    def save_if_due(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Between two optimizer steps; all processes must call it.

        Raises:
            Interrupted: a signal has asked to stop, and the run is saved.
        """
        step = trainer.global_step
        signum = self.signals.agreed(trainer)
        due = step % self.every == 0 or step == trainer.max_steps or signum
        if due and step != self._saved_at:
            self._save(trainer, pl_module, step)
        if signum:
            raise Interrupted(signum, step)

    def teardown(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:  # type: ignore[override]
        if trainer.world_size == 1 or not self.signals.noted:
            self.signals.restore()  # where other processes stop too, a further signal must not cut off the last lines

    def _save(self, trainer: Trainer, module: TrainingModule, step: int) -> None:
        """All processes gather, the first one writes, and all learn whether it could."""
        content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if largest(trainer, checkpoint.is_broken(content["state_dict"])):
            raise DataError(
                "weights that train are not finite, so no checkpoint was written",
                where=f"step {step}",
                fix="a lower stage.lr or stage.grad_clip=1.0; the run can be continued from the checkpoint before",
            )
        error: Exception | None = None
        try:
            trainer.strategy.save_checkpoint(content, self.folder / f"step_{step:08d}.ckpt")
        except (MmexpError, OSError) as found:
            error = found
        if not largest(trainer, error is not None):
            self._failed, self._saved_at = 0, step
            if trainer.is_global_zero:
                checkpoint.prune(self.folder, self.keep)
            return
        self._failed += 1
        log.warning("checkpoint of step %d not written, the one before stays: %s", step, error)
        if self._failed >= _FAILED_SAVES:
            raise error or CheckpointError("the first process could not write checkpoints", where=str(self.folder))


def _part_norms(module: TrainingModule) -> dict[str, float]:
    """Gradient norms of the parts in the last optimizer step, before clipping."""
    norms = {} if module.grad_norms is None else module.grad_norms.of_parts(module.parts())
    return {f"grad_norm/{part}": norm for part, norm in norms.items()}
