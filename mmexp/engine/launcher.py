"""Starts the further processes of a node, and sees to it that none is waited for, or left, when one has died."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from mmexp.engine.signals import STOP

log = logging.getLogger(__name__)

GRACE_S = 10.0
"""How long the others may take to find out by themselves that one has died, and to say so."""
_STOP_GRACE_S = 60.0
"""The same when they have been asked to stop, which ends with a checkpoint."""
_EVERY_S = 0.5
_ORDERLY = {0, *(128 + signum for signum in STOP)}


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher, but a process that dies is named, and the rest get time to end well before they are ended.

    Lightning's own ends the first process with SIGKILL, without a word, also after an orderly stop.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=self._watch, daemon=True, name="watch-processes").start()
        elif "LOCAL_RANK" in os.environ and os.environ.get("LOCAL_RANK") != "0":
            threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True, name="watch-parent").start()
        try:
            return function(*args, **kwargs)
        except BaseException:  # raised again
            self._end(_STOP_GRACE_S if trainer and _has_stopped(trainer) else GRACE_S)
            raise

    def _watch(self) -> None:
        while True:
            time.sleep(_EVERY_S)
            codes = [process.poll() for process in self.procs]
            if all(code == 0 for code in codes):
                return
            dead = [(rank, code) for rank, code in enumerate(codes, 1) if code]
            if dead:
                break
        rank, code = dead[0]
        if code not in _ORDERLY:
            log.error("process %d of this node %s; the run ends", rank, describe(code))
        time.sleep(_STOP_GRACE_S if code in _ORDERLY else GRACE_S)
        log.error("this process still waits for it and is ended")
        self._end(0)
        os._exit(1)

    def _end(self, grace_s: float) -> None:
        """Waits for the processes that this one has started, then ends those that are left."""
        deadline = time.monotonic() + grace_s
        for process in self.procs:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def describe(code: int) -> str:
    """An exit code of `subprocess` in words."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _has_stopped(trainer: Any) -> bool:
    from mmexp.engine.callbacks import Checkpoints

    return any(isinstance(callback, Checkpoints) and callback.signals.noted for callback in trainer.callbacks)


def _watch_parent(parent: int) -> None:
    """Ends this process some time after the one that started it; nobody would read its results."""
    while os.getppid() == parent:
        time.sleep(_EVERY_S)
    time.sleep(GRACE_S)
    log.error("the first process of this node is gone; this one ends too")
    os._exit(1)
