"""What `--help` says, without composing anything."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from mmexp.config.overrides import top_level_keys
from mmexp.config.paths import groups

_WIDTH = 110


def help_text(module: str, config_name: str, folders: Sequence[Path]) -> str:
    """How to call the command, with every group and its choices.

    Args:
        module: What `python -m` runs.
        config_name: Its primary configuration.
        folders: The package's `conf/`, then the user's.
    """
    known, top = groups(list(folders)), top_level_keys(config_name, folders)
    used = [group for group in known if group in top]
    keys = sorted(top - set(used))
    lines = [f"python -m {module} [group=choice ...] [key=value ...]", ""]
    if used:
        lines += ["Groups and their choices", *(_row(group, known[group]) for group in used), ""]
    lines += ["Further keys (nested ones as stage.lr=1e-3)", _row("", keys), "", "Flags"]
    lines += [
        "  --cfg job            show the composed configuration and stop",
        "  -m key=a,b           one job for each combination, each in a process of its own",
        "  --config-dir FOLDER  your own choices, in folders named like the groups",
    ]
    if "recipe" in used:
        lines += [
            "",
            "Examples",
            f"  python -m {module} recipe=llava15 scale=shapes",
            f"  python -m {module} stage=align trainer.max_steps=20",
        ]
    return "\n".join(lines)


def _row(title: str, words: Sequence[str]) -> str:
    return textwrap.fill(
        ", ".join(words), _WIDTH, initial_indent=f"  {title:<11} ", subsequent_indent=" " * 14, break_on_hyphens=False
    )
