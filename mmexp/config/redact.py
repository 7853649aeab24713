"""Takes out of a configuration what must not be written anywhere: secrets, the home folder, where the package lies."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmexp.config.paths import PACKAGE

_SECRET = re.compile(r"(^|_)(api_?key|key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_SECRET_LIKE = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|wandb_v1_\w{16,})\b")
_SPECIAL_TOKEN = re.compile(r"^[<\[].*[>\]]$")
_SHORTEST = 8
REDACTED = "<redacted>"
HERE = "{mmexp}"
"""Stands for the folder of the package in what is written, so that a run survives a move of the package."""


def redact(value: Any, key: str = "") -> Any:
    """A copy in which values under names like `api_key`, `token`, `secret`, and values that the environment keeps
    under such names, are replaced; home becomes `~` and the package's folder `{mmexp}`.

    A special token of a tokenizer (`image_token: <image>`) is not a secret.
    """
    if isinstance(value, Mapping):
        return {name: redact(child, str(name)) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [redact(child, key) for child in value]
    if isinstance(value, str):
        return REDACTED if _SECRET.search(key) and value and not _SPECIAL_TOKEN.match(value) else redact_text(value)
    return value


def redact_text(text: str) -> str:
    """One string without secrets, the package's folder and the home path."""
    for secret in _environment_secrets():
        text = text.replace(secret, REDACTED)
    text = _SECRET_LIKE.sub(REDACTED, text)
    text = text.replace(str(PACKAGE), HERE)
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?=/|$)", "~", text) if len(home) > 1 else text


def redact_overrides(overrides: list[str]) -> list[str]:
    """Command line overrides with the values of secret names replaced."""
    cleaned = []
    for override in overrides:
        name, sign, value = override.partition("=")
        secret = sign and _SECRET.search(name.rsplit(".", 1)[-1].lstrip("+~"))
        cleaned.append(f"{name}={REDACTED}" if secret else f"{name}{sign}{redact_text(value)}")
    return cleaned


def localize(value: Any) -> Any:
    """The other way for paths: `~` and `{mmexp}` at the start of a text become the folders of this machine."""
    if isinstance(value, Mapping):
        return {name: localize(child) for name, child in value.items()}
    if isinstance(value, list):
        return [localize(child) for child in value]
    if isinstance(value, str) and (value == HERE or value.startswith(f"{HERE}/")):
        return f"{PACKAGE}{value.removeprefix(HERE)}"
    if isinstance(value, str) and (value == "~" or value.startswith("~/")):
        return f"{Path.home()}{value[1:]}"
    return value


def _environment_secrets() -> list[str]:
    found = (value for name, value in os.environ.items() if _SECRET.search(name))
    return sorted({value for value in found if len(value) >= _SHORTEST}, key=len, reverse=True)
