"""Runs side by side: `python -m mmexp.compare outputs/sweeps/x out=compare.html`, or `runs=[DIR,DIR,...]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from mmexp.compare import (
    Comparison,
    compare,
    csv_text,
    latex,
    load_folders,
    load_tracked,
    markdown,
    page_html,
    terminal_tables,
)
from mmexp.config import CompareConfig, Invocation, check_own, launch
from mmexp.errors import ConfigError, DataError

WRITERS: dict[str, Callable[[Comparison, CompareConfig], str]] = {
    ".html": lambda comparison, cfg: page_html(comparison, cfg.max_samples),
    ".md": lambda comparison, _: markdown(comparison),
    ".tex": lambda comparison, _: latex(comparison),
    ".csv": lambda comparison, _: csv_text(comparison),
}
"""What is written, by the end of the file's name."""
_WIDTH = 120
"""Columns where nobody says how many there are, as in a file or a pipe."""


def body(invocation: Invocation) -> None:
    """Compares, prints the table, and writes the files that were asked for."""
    from rich.console import Console

    cfg = check_own(CompareConfig, invocation.cfg)
    outs = [(Path(name).expanduser(), _writer(name)) for name in cfg.files]
    found = load_tracked(cfg.wandb, cfg.group) if cfg.wandb is not None else load_folders(cfg.places)
    comparison = compare(found, cfg.metric, cfg.baseline)
    console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH)
    console.print(*terminal_tables(comparison), sep="\n")
    for note in comparison.notes:
        console.print(f"note  {note}", markup=False, soft_wrap=True)
    for name, reason in comparison.left_out:
        console.print(f"left out  {name}: {reason}", markup=False, soft_wrap=True)
    for path, write in outs:
        _save(path, write(comparison, cfg))
        console.print(f"wrote  {path}", markup=False, soft_wrap=True)


def _writer(name: str) -> Callable[[Comparison, CompareConfig], str]:
    suffix = Path(name).suffix.lower()
    if suffix not in WRITERS:
        raise ConfigError(f"{name!r} ends in {suffix or 'nothing'}", expected=f"one of {', '.join(WRITERS)}",
                          where="out", fix=f"out={Path(name).stem or 'compare'}.html")  # fmt: skip
    return WRITERS[suffix]


def _save(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=str(path), fix="out=<another file>") from error


if __name__ == "__main__":
    launch(body, config_name="compare", module="mmexp.compare", bare="runs")
