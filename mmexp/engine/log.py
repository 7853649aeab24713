"""Logs of a run, progress bars, and the trackers that metrics go to besides metrics.jsonl."""

from __future__ import annotations

import logging
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from mmexp.engine.callbacks import MetricsLog

log = logging.getLogger(__name__)
console = Console(highlight=False)


def setup_logging(file: Path | None = None) -> None:
    """Sends our log to the terminal and, with `file`, to the run's run.log; rank zero only."""
    root = logging.getLogger("mmexp")
    root.setLevel(logging.INFO if int(os.environ.get("LOCAL_RANK", "0")) == 0 else logging.ERROR)
    root.propagate = False
    root.handlers = [
        RichHandler(console=console, show_time=False, show_level=False, show_path=False, rich_tracebacks=False)
    ]
    if file is not None:
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*dataloader is not resumable.*", ".*not have a `val_dataloader`.*"):
        warnings.filterwarnings("ignore", message)


class TrainingProgress(Callback):
    """A bar with loss, throughput and time left; where there is no terminal, a line now and then.

    Args:
        metrics: Where the values come from.
        label: Name of the stage.
        every_s: Seconds between two lines without a terminal.
    """

    def __init__(self, metrics: MetricsLog, label: str, every_s: float = 15.0) -> None:
        self.metrics, self.label, self.every_s = metrics, label, every_s
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._next_line = time.monotonic() + self.every_s
        self._shown = trainer.global_step
        if not trainer.is_global_zero or not console.is_terminal:
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
        self._task = self._bar.add_task(
            self.label, total=trainer.max_steps, completed=trainer.global_step, values=""
        )

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
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


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases: online when a key is there, offline otherwise. It never stops a run."""

    project: str = "mmexp"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; null takes the account's default."""
    offline: bool = False
    """Never contact the server."""

    def build(self, run_dir: Path, group: str, job_type: str, tags: list[str], config: dict[str, Any]) -> Logger | None:
        online = not self.offline and (bool(os.environ.get("WANDB_API_KEY")) or _has_netrc_key())
        if not online and not self.offline:
            log.info("no W&B key: logging offline; later `wandb login`, then `wandb sync %s/wandb/offline-run-*`", run_dir)
        try:
            os.environ.setdefault("WANDB_SILENT", "true")
            logger = WandbLogger(
                project=self.project,
                entity=self.entity,
                offline=not online,
                save_dir=str(run_dir),
                id=run_dir.name,
                resume="allow",
                name=f"{group}/{job_type}/{run_dir.name}",
                group=group,
                job_type=job_type,
                tags=tags,
                config=config,
            )
            _ = logger.experiment
            return logger
        except Exception as error:  # a tracker must not stop an experiment; metrics.jsonl is the record
            log.warning("W&B is off for this run: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
            return None


@dataclass(frozen=True, kw_only=True)
class TensorBoardConfig:
    """Event files under `<run>/tensorboard`."""

    def build(self, run_dir: Path, group: str, job_type: str, tags: list[str], config: dict[str, Any]) -> Logger | None:
        return TensorBoardLogger(save_dir=str(run_dir), name="tensorboard", version="")


def _has_netrc_key() -> bool:
    import netrc

    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
