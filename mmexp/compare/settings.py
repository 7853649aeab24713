"""The settings of a run that could explain its figures: flat, without names and places, comparable between runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Settings = Mapping[str, Any]
"""Config path to a plain value."""

_SEED = "seed"
_LEFT_OUT = ("name", "paper", "stages", "run_id", "resume", "inexact_resume", "paths", "logger", "stage.name",
             "stage.twin", "derived", "overrides")  # fmt: skip
"""Names, places, and what says nothing of what was computed; each with everything below it."""
_START = "stage.init_from"
_LONGEST_LINEAGE = 20


def settings_of(config: Mapping[str, Any], folder: Path | None) -> Settings:
    """The flat settings of a resolved configuration, its seed left out.

    Places below one of its `paths` become `{shapes}/...`, so that the same data in two folders are the same; a run that
    weights come from counts by what it is, not by where it lies.

    Args:
        config: As in config.yaml.
        folder: The run directory, from which relative places are looked for; None when it is not on this machine.
    """
    return _settings(config, folder, depth=0)


def seed_of(config: Mapping[str, Any]) -> int | None:
    """The seed, None when there is none."""
    seed = config.get(_SEED)
    return seed if isinstance(seed, int) else None


def read_config(file: Path) -> dict[str, Any]:
    """A config.yaml as plain values. Raises ValueError for one that is missing or damaged."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"config.yaml cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ValueError("config.yaml holds no settings")
    return content


def differing(many: Sequence[Settings]) -> list[str]:
    """Config paths whose value is not the same in all, in the order of their first appearance."""
    keys = dict.fromkeys(key for settings in many for key in settings)
    return [key for key in keys if len({identity(settings.get(key)) for settings in many}) > 1]


def identity(value: Any) -> str:
    """Text that is equal for equal values and for no others."""
    return json.dumps(value, sort_keys=True, default=str)


def shown(value: Any) -> str:
    """A value for people: a class by its own name, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, list | dict) else str(value)


def _settings(config: Mapping[str, Any], folder: Path | None, depth: int) -> dict[str, Any]:
    paths = config.get("paths")
    places = sorted(
        ((str(place), name) for name, place in (paths.items() if isinstance(paths, Mapping) else ()) if place),
        key=lambda pair: -len(pair[0]),
    )
    leaves = dict(_leaves(config))
    flat = {key: _placed(value, places) for key, value in leaves.items() if key != _SEED and not _is_left_out(key)}
    start = leaves.get(_START)
    if start is not None and depth < _LONGEST_LINEAGE:
        given = start if isinstance(start, list) else [start]
        flat[_START] = ", ".join(_origin(str(one), folder, depth) or _placed(str(one), places) for one in given)
    return flat


def _origin(place: str, folder: Path | None, depth: int) -> str | None:
    """A run that is still here as name, stage and a digest of its settings; None for anything else."""
    bases = [*(folder.resolve().parents if folder else ()), Path.cwd()]
    found = next((base / place for base in bases if (base / place / "config.yaml").is_file()), None)
    if found is None:
        return None
    try:
        config = read_config(found / "config.yaml")
    except ValueError:
        return None
    digest = hashlib.sha256(identity(_settings(config, found, depth + 1)).encode()).hexdigest()[:6]
    stage = config.get("stage")
    name = stage.get("name") if isinstance(stage, Mapping) else None
    return f"{config.get('name')}/{name}#{digest}"


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))


def _is_left_out(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _LEFT_OUT)


def _placed(value: Any, places: Iterable[tuple[str, str]]) -> Any:
    if not isinstance(value, str):
        return value
    for place, name in places:
        if value == place or value.startswith(f"{place}/"):
            return f"{{{name}}}{value[len(place) :]}"
    return value
