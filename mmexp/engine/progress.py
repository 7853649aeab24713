"""The bar of a training run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmexp.engine.log import console

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from mmexp.engine.module import TrainingModule
    from mmexp.tuning import TrainedPart

log = logging.getLogger(__name__)

_SHOWN_FIGURES = 2
"""Of benchmarks, beside the loss."""


class TrainingProgress:
    """A bar with loss, throughput and time left; where there is no terminal, a line now and then.

    Args:
        label: Name of the stage.
        on_start: Gets the table of what trains before the first step.
        every_s: Seconds between two lines without a terminal.
    """

    def __init__(self, label: str, on_start: Callable[[list[TrainedPart]], None], every_s: float = 15.0) -> None:
        self.label, self.on_start, self.every_s = label, on_start, every_s
        self._bar: Progress | None = None
        self._found = ""

    def start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Shows what trains, and an empty bar."""
        self._next_line = time.monotonic() + self.every_s
        self._quiet = not trainer.is_global_zero
        self._total = trainer.max_steps
        if self._quiet:
            return
        self.on_start(module.table())
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
        self._task = self._bar.add_task(self.label, total=self._total, completed=trainer.global_step, values="")

    def advance(self, step: int, record: Mapping[str, float]) -> None:
        """Step `step` is done; `record` is the last one written."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values=self._values(record))
        elif not self._quiet and time.monotonic() > self._next_line:
            log.info("%s step %d/%d %s", self.label, step, self._total, self._values(record))
            self._next_line = time.monotonic() + self.every_s

    def note_validation(self, figures: Mapping[str, float]) -> None:
        """Shows from now on the first figures of what benchmarks found last.

        Args:
            figures: By `val/<split>/<benchmark>/<metric>`, the main metric of each benchmark first.
        """
        main: dict[str, float] = {}
        for name, value in figures.items():
            _, split, benchmark, _ = name.split("/", 3)
            main.setdefault(f"{benchmark} {split}", value)
        self._found = "".join(f"  {name} {value:.3f}" for name, value in islice(main.items(), _SHOWN_FIGURES))

    def stop(self) -> None:
        """Takes the bar away; again is harmless."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _values(self, record: Mapping[str, float]) -> str:
        if not record:
            return ""
        return f"loss {record['train/loss']:.3f}  {record['data/tokens_per_s']:.0f} tokens/s{self._found}"
