"""Which process of a job has gone silent: each one says now and then that it is alive."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from torch import distributed

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from mmexp.engine.module import TrainingModule

log = logging.getLogger(__name__)

_EVERY_S = 2.0
SILENT_S = 15.0
"""After so long without a sign a process is named."""
_SIGNS = ("Connection closed", "Connection reset", "Timed out", "timed out", "Broken pipe", "NCCL", "gloo")


class LostProcess(Exception):
    """Another process of the job has died or does not answer."""


class Heartbeat(Callback):
    """A thread in every process that counts in the job's store; the first one watches the counts of all.

    A process that is stopped, or whose machine is gone, counts no more. It is named in the log long before the
    timeout of the process group, which then ends the run.
    """

    def __init__(self) -> None:
        self.silent: list[int] = []
        self._over = threading.Event()

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        if trainer.world_size == 1:
            return
        store = distributed.distributed_c10d._get_default_store().clone()
        store.set_timeout(timedelta(seconds=_EVERY_S))
        rank, world = trainer.global_rank, trainer.world_size
        target = self._watch if rank == 0 else self._beat
        threading.Thread(target=target, args=(store, rank, world), daemon=True, name="heartbeat").start()

    def teardown(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:  # type: ignore[override]
        self._over.set()

    def _beat(self, store: Any, rank: int, world: int) -> None:
        while not self._over.wait(_EVERY_S):
            try:
                store.add(f"mmexp/alive/{rank}", 1)
            except RuntimeError:  # the first process is gone, and with it the store
                return

    def _watch(self, store: Any, rank: int, world: int) -> None:
        seen = {other: (0, time.monotonic()) for other in range(1, world)}
        while not self._over.wait(_EVERY_S):
            for other, (count, _) in seen.items():
                now = store.add(f"mmexp/alive/{other}", 0)
                if now != count:
                    seen[other] = (now, time.monotonic())
            late = [other for other, (_, since) in seen.items() if time.monotonic() - since > SILENT_S]
            for other in set(late) - set(self.silent):
                log.error("process %d gives no sign of life for %.0f s", other, time.monotonic() - seen[other][1])
            self.silent = late


def lost_process(error: BaseException, heartbeat: Heartbeat, world_size: int) -> LostProcess | None:
    """What an error of the process group means; None for any other error."""
    text = " ".join(str(error).split())
    is_of_group = isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)
    if world_size == 1 or not is_of_group:
        return None
    names = ", ".join(map(str, heartbeat.silent))
    who = (
        f"process {names} gives no sign of life" if names else "another process of this job has died or does not answer"
    )
    return LostProcess(f"{who}: {text[:200]}")
