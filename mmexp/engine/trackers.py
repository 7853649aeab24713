"""Trackers that metrics go to besides metrics.jsonl: Weights & Biases and TensorBoard."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

log = logging.getLogger(__name__)

_START_TIMEOUT_S = 30
"""How long the tracker's server may take to answer before a run is logged offline."""


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
            log.info(
                "no W&B key: logging offline; later `wandb login`, then `wandb sync %s/wandb/offline-run-*`", run_dir
            )
        settings = {
            "project": self.project,
            "entity": self.entity,
            "save_dir": str(run_dir),
            "id": run_dir.name,
            "resume": "allow",
            "name": f"{group}/{job_type}/{run_dir.name}",
            "group": group,
            "job_type": job_type,
            "tags": tags,
            "config": config,
        }
        for offline in (False, True) if online else (True,):
            try:
                return _open_wandb(settings, offline)
            except Exception as error:  # a tracker must not stop an experiment; metrics.jsonl is the record
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                log.warning("W&B is %s for this run: %s", "off" if offline else "offline", reason)
        return None


def _open_wandb(settings: dict[str, Any], offline: bool) -> Logger:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    wandb.teardown()  # what a failed try has left
    limits = wandb.Settings(init_timeout=_START_TIMEOUT_S)
    logger = WandbLogger(**settings, offline=offline, settings=limits)
    _ = logger.experiment
    return logger


@dataclass(frozen=True, kw_only=True)
class TensorBoardConfig:
    """Event files under `<run>/tensorboard`."""

    def build(self, run_dir: Path, group: str, job_type: str, tags: list[str], config: dict[str, Any]) -> Logger | None:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(save_dir=str(run_dir), name="tensorboard", version="")


_silent: set[int] = set()
"""Loggers that have failed; they are not asked again."""


def log_safely(loggers: Sequence[Logger], values: Mapping[str, float], step: int) -> None:
    """Hands figures to every tracker. One that raises is left alone from then on: metrics.jsonl has them all."""
    for logger in loggers:
        if id(logger) in _silent:
            continue
        try:
            logger.log_metrics(dict(values), step=step)
        except Exception as error:  # a tracker must not stop an experiment
            _silent.add(id(logger))
            log.warning("%s gets no further figures: %s", type(logger).__name__, str(error) or type(error).__name__)


def _has_netrc_key() -> bool:
    import netrc

    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
