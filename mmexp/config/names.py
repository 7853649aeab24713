"""Nearest names, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that `name` was probably meant to be, if one is close enough."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def listing(choices: Iterable[str]) -> str:
    """The choices in one line."""
    return ", ".join(sorted(choices)) or "nothing"
