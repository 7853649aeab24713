"""The bar of a training run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmexp.engine.log import console

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from mmexp.engine.callbacks import MetricsLog
    from mmexp.tuning import TrainedPart

log = logging.getLogger(__name__)


class TrainingProgress(Callback):
    """A bar with loss, throughput and time left; where there is no terminal, a line now and then.

    Args:
        metrics: Where the values come from.
        label: Name of the stage.
        on_start: Gets the table of what trains before the first step.
        every_s: Seconds between two lines without a terminal.
    """

    def __init__(
        self, metrics: MetricsLog, label: str, on_start: Callable[[list[TrainedPart]], None], every_s: float = 15.0
    ) -> None:
        self.metrics, self.label, self.on_start, self.every_s = metrics, label, on_start, every_s
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._next_line = time.monotonic() + self.every_s
        self._shown = trainer.global_step
        if not trainer.is_global_zero:
            return
        self.on_start(pl_module.table())
        if not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.label, total=trainer.max_steps, completed=trainer.global_step, values="")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # type: ignore[override]
        step = trainer.global_step
        if step == self._shown:
            return
        self._shown = step
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values=self._values())
        elif trainer.is_global_zero and time.monotonic() > self._next_line:
            log.info("%s step %d/%d %s", self.label, step, trainer.max_steps, self._values())
            self._next_line = time.monotonic() + self.every_s

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _values(self) -> str:
        record = self.metrics.record
        if not record:
            return ""
        return f"loss {record['train/loss']:.3f}  {record['data/tokens_per_s']:.0f} tokens/s"
