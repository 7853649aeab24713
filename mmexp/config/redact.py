"""Takes out of a configuration what must not be written anywhere: secrets and the home folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SECRET = re.compile(r"(^|_)(api_?key|key|token|secret|password|passwd)$", re.IGNORECASE)
_TOKEN_LIKE = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|[0-9a-f]{40})\b")
REDACTED = "<redacted>"


def redact(value: Any, key: str = "") -> Any:
    """A copy in which values under names like `api_key`, `token`, `secret` are replaced, and home becomes `~`."""
    if isinstance(value, Mapping):
        return {name: redact(child, str(name)) for name, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(child, key) for child in value]
    if isinstance(value, str):
        if _SECRET.search(key) and value:
            return REDACTED
        return redact_text(value)
    return value


def redact_text(text: str) -> str:
    """One string without token-like words and without the home path."""
    home = str(Path.home())
    text = _TOKEN_LIKE.sub(REDACTED, text)
    return text.replace(home, "~") if len(home) > 1 and text.startswith(home) else text


def redact_overrides(overrides: list[str]) -> list[str]:
    """Command line overrides with the values of secret names replaced."""
    cleaned = []
    for override in overrides:
        name, sign, value = override.partition("=")
        secret = sign and _SECRET.search(name.rsplit(".", 1)[-1].lstrip("+~"))
        cleaned.append(f"{name}={REDACTED}" if secret else f"{name}{sign}{redact_text(value)}")
    return cleaned
