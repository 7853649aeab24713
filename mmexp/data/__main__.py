"""Data on the command line: `python -m mmexp.data COMMAND [group=choice ...] [key=value ...]`, see `COMMANDS`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmexp.config import (
    DataCheckConfig,
    DataConvertConfig,
    DataFetchConfig,
    Invocation,
    check_besides,
    launch,
    own_keys,
)

if TYPE_CHECKING:
    from mmexp.data.inspect import Inspection

UNUSED = ("evaluation", "optim", "trainer", "logger", "objective")
"""Nodes of a run that say nothing about its data."""


def check(invocation: Invocation) -> None:
    """Looks at every row; a table, a page with examples, and exit code 1 when there is an error."""
    from pathlib import Path

    from mmexp.engine import console
    from mmexp.present_data import page_of, problem_rows
    from mmexp.report import plan_table

    report, own = _inspect(invocation)
    rows = problem_rows(report)
    if rows:
        console.print(plan_table(rows, title="problems"))
    page = page_of(report, "Data check", Path(own.out or "data_check.html"))
    num_warnings = len(report.problems) - report.num_errors
    console.print(f"{report.num_rows} rows, {report.num_errors} errors, {num_warnings} warnings")
    console.print(f"page {page}", soft_wrap=True)
    if report.num_errors:
        raise SystemExit(1)


def stats(invocation: Invocation) -> None:
    """What a dataset holds: rows, turns, pictures, tokens, and how many of them are supervised."""
    from mmexp.engine import console
    from mmexp.present_data import stat_tables
    from mmexp.report import plan_table

    report, _ = _inspect(invocation)
    for title, rows in stat_tables(report).items():
        console.print(title)  # a table's own title is broken to its width
        console.print(plan_table(rows))


def convert(invocation: Invocation) -> None:
    """Writes the samples as LLaVA JSON or as tar shards, pictures included."""
    from pathlib import Path

    from mmexp.assemble import experiment
    from mmexp.data.convert import to_llava, to_webdataset
    from mmexp.engine import console, setup_logging

    setup_logging()
    own = check_besides(DataConvertConfig, invocation.cfg)
    exp = experiment(invocation, skip=(*own_keys(DataConvertConfig), *UNUSED))
    dataset, write_region = exp.checked.parts["data"].build(), exp.checked.parts["template"].region.text
    if own.to == "llava":
        written = to_llava(dataset, Path(own.out), write_region)
    else:
        written = to_webdataset(dataset, Path(own.out), write_region, own.shard_rows)
    console.print(f"{len(dataset)} rows written to {written}", soft_wrap=True)


def fetch(invocation: Invocation) -> None:
    """What a run or recipe needs from elsewhere, with sizes; downloads what a hub has. Exit code 1: some is missing."""
    from mmexp.data.fetch import fetch as bring_all
    from mmexp.engine import console, setup_logging
    from mmexp.needs import needs_of
    from mmexp.present_data import found_line

    setup_logging()
    own = check_besides(DataFetchConfig, invocation.cfg)
    needs = needs_of(invocation)
    missing = bring_all(needs, lambda found: console.print(found_line(found), soft_wrap=True), own.download)
    if offline := next((found.remark for found in missing if found.is_offline), None):
        console.print(f"offline ({offline}): sizes are estimates, nothing is downloaded from a hub", soft_wrap=True)
    console.print(f"{len(missing)} of {len(needs)} are missing" if needs else "nothing is needed from elsewhere")
    if missing:
        raise SystemExit(1)


def caption(invocation: Invocation) -> None:
    """Lets a run describe pictures for MiniGPT-4's second stage; again: goes on where it was. See conf/data_caption."""
    from mmexp.captioning import caption as write_captions
    from mmexp.engine import console, setup_logging
    from mmexp.present_data import caption_rows
    from mmexp.report import plan_table

    setup_logging()
    report, place = write_captions(invocation)
    console.print(plan_table(caption_rows(report)))
    console.print(f"{report['kept']} of {report['rows']} descriptions written to {place}", soft_wrap=True)


def cache(invocation: Invocation) -> None:
    """Encodes the pictures of a run with its frozen encoder: training then finds their features. Exit code 1: full."""
    from pathlib import Path

    from mmexp.assemble import experiment
    from mmexp.engine import RunDir, console, setup_logging
    from mmexp.engine.fill import fill
    from mmexp.present_data import cache_rows
    from mmexp.report import plan_table

    setup_logging()
    exp = experiment(invocation)
    filled = fill(exp.job(RunDir(Path(exp.checked.spine.paths.outputs))), console)
    console.print(plan_table(cache_rows(filled)))
    for folder in filled.folders:
        console.print(f"features  {folder}", soft_wrap=True)
    if filled.closed:
        raise SystemExit(1)


def _inspect(invocation: Invocation) -> tuple[Inspection, DataCheckConfig]:
    from mmexp.assemble import experiment
    from mmexp.data.inspect import inspect_data
    from mmexp.data.readers.auto import AutoConfig, build_tolerant
    from mmexp.engine import setup_logging

    setup_logging()
    own = check_besides(DataCheckConfig, invocation.cfg)
    exp = experiment(invocation, skip=(*own_keys(DataCheckConfig), *UNUSED))
    config = exp.checked.parts["data"]
    dataset, errors = build_tolerant(config)
    root = getattr(config, "image_root", None)
    others = [AutoConfig(path=path, image_root=root).build() for path in own.against]
    return inspect_data(dataset, exp.prompt.processor, others, errors), own


COMMANDS: dict[str, tuple[Callable[[Invocation], None], str]] = {
    "check": (check, "data_check"),
    "stats": (stats, "data_check"),
    "convert": (convert, "data_convert"),
    "fetch": (fetch, "data_fetch"),
    "caption": (caption, "data_caption"),
    "cache": (cache, "data_cache"),
}
"""Per command what it does, and its primary configuration."""


def main(args: list[str]) -> None:
    """Runs the command that the first argument names."""
    if not args or args[0] not in COMMANDS:
        lines = "\n".join(f"  {name:<8} {(body.__doc__ or '').splitlines()[0]}" for name, (body, _) in COMMANDS.items())
        asked_for_help = args[:1] in (["--help"], ["-h"])
        first = "" if asked_for_help or not args else f"no command {args[0]!r}\n"
        text = f"{first}python -m mmexp.data COMMAND [group=choice ...] [key=value ...]\n{lines}\n"
        (sys.stdout if asked_for_help else sys.stderr).write(text)
        raise SystemExit(0 if asked_for_help else 2)
    body, config_name = COMMANDS[args[0]]
    launch(body, config_name=config_name, module=f"mmexp.data {args[0]}", argv=args[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
