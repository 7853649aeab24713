"""What the model will see, before anything trains: `python -m mmexp.preview n=3 [out=samples.jsonl]`."""

from __future__ import annotations

from mmexp.config import Invocation, PreviewConfig, check_besides, launch, own_keys


def body(invocation: Invocation) -> None:
    """Prints samples with supervised tokens in green, draws their pictures, and writes JSON lines on request."""
    import json
    from pathlib import Path

    from mmexp.assemble import experiment
    from mmexp.engine import console, setup_logging
    from mmexp.present import preview_items
    from mmexp.report import preview_sheet, token_view

    setup_logging()
    own = check_besides(PreviewConfig, invocation.cfg)
    exp = experiment(invocation, skip=(*own_keys(PreviewConfig), "evaluation", "optim", "trainer", "logger"))
    lines, entries = preview_items(exp, own.n)
    for entry in entries:
        console.rule(entry.id)
        console.print(token_view(entry.pieces), soft_wrap=True)
        console.print(f"[dim]{entry.counts}[/dim]")
    sheet = Path(own.out).with_suffix(".png") if own.out else Path("preview.png")
    preview_sheet(entries, sheet)
    console.print(f"pictures {sheet}")
    if own.out:
        Path(own.out).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        console.print(f"samples  {own.out}")


if __name__ == "__main__":
    launch(body, config_name="preview", module="mmexp.preview")
