"""Where the log of a run goes."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from mmexp.engine.ranks import is_main

_WIDTH = 120
"""Columns where nobody says how many there are: a file, a pipe or a log, in which tables need not break."""
console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH)

_HARMLESS = (
    ".*does not have many workers.*",
    ".*dataloader is not resumable.*",  # its position is in the data module's state
    ".*in eval mode at the start of training.*",  # frozen parts are meant to be
    ".*isinstance\\(treespec.*",
    ".*smaller than the logging interval.*",  # our own callback writes metrics
    ".*lr_scheduler.step.*before.*optimizer.step.*",  # a step that was left out
)
"""Warnings of libraries that do not hold for what we do."""


def setup_logging(file: Path | None = None) -> None:
    """Sends our log to the terminal and, with `file`, to the run's run.log; rank zero only."""
    root = logging.getLogger("mmexp")
    root.setLevel(logging.INFO if is_main() else logging.ERROR)
    root.propagate = False
    root.handlers = [
        RichHandler(console=console, show_time=False, show_level=False, show_path=False, rich_tracebacks=False)
    ]
    if file is not None and is_main():
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if not console.is_terminal:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
    for message in _HARMLESS:
        warnings.filterwarnings("ignore", message)
