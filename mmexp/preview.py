"""What the model will see, before anything trains: `python -m mmexp.preview n=3 [out=samples.jsonl]`."""

from __future__ import annotations

from mmexp.config import Invocation, launch
from mmexp.errors import ConfigError


def body(invocation: Invocation) -> None:
    """Prints samples with supervised tokens in green, draws their pictures, and writes JSON lines on request."""
    import json
    from pathlib import Path

    from mmexp.assemble import experiment, preview_items
    from mmexp.engine import console, setup_logging
    from mmexp.report import preview_sheet, token_view

    setup_logging()
    own = invocation.own
    if not isinstance(own["n"], int) or own["n"] < 1:
        raise ConfigError(f"{own['n']!r}", expected="a number of samples, at least 1", where="n")
    exp = experiment(invocation, skip=("evaluation", "optim", "trainer", "logger"))
    lines, entries = preview_items(exp, own["n"])
    for entry in entries:
        console.rule(entry.id)
        console.print(token_view(entry.pieces), soft_wrap=True)
        console.print(f"[dim]{entry.counts}[/dim]")
    preview_sheet(entries, Path(own["sheet"]))
    console.print(f"pictures {own['sheet']}")
    if own["out"]:
        Path(own["out"]).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        console.print(f"samples  {own['out']}")


if __name__ == "__main__":
    launch(body, config_name="train", module="mmexp.preview", own={"n": 3, "out": None, "sheet": "preview.png"})
