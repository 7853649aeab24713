"""The command line, read with Hydra's own parser: mistakes in groups and top-level keys, and which keys to force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from mmexp.config.names import listing, nearest
from mmexp.config.paths import groups
from mmexp.errors import ConfigError, MmexpError

PARTS_OF_PUBLISHED_SIZE = ("encoder", "llm")
"""Groups in which a choice says how large a run is meant to be."""
LAPTOP_PARTS = ("shapes_", "tiny", "none")
"""How the choices in these groups begin that belong to no published size."""


@dataclass(frozen=True)
class CommandLine:
    """Overrides as Hydra wants them."""

    overrides: list[str] = field(default_factory=list)
    """Those that are right; keys of components are forced, since `conf/` holds only what differs from defaults."""
    errors: list[MmexpError] = field(default_factory=list)
    """One for each that is not."""
    has_default_scale: bool = False
    """Whether `scale=paper` was added, because a recipe or a published part was given without a scale (ADR 1)."""


def understand(texts: Sequence[str], config_name: str, folders: Sequence[Path]) -> CommandLine:
    """Reads overrides against the groups in `folders` and the top-level keys of the primary configuration.

    Args:
        texts: As typed.
        config_name: Primary configuration, e.g. `train`.
        folders: The package's `conf/` first, then the user's.
    """
    known = groups(list(folders))
    top = top_level_keys(config_name, folders)
    good: list[str] = []
    errors: list[MmexpError] = []
    given: dict[str, list[str]] = {}
    for text in texts:
        override = _parse(text, known, errors)
        if override is None:
            continue
        if override.type == OverrideType.CHANGE and override.value() is None and known.get(override.key_or_group) == []:
            continue  # a group without choices is off already
        if override.value() is not None:
            given[override.key_or_group] = _choices(override)
        problems = _mistakes(override, known, top)
        errors += problems
        if not problems:
            good.append(_forced(text, override, known))
    has_default_scale = "scale" in top and "scale" not in given and _is_published(given)
    return CommandLine(good + ["scale=paper"] * has_default_scale, errors, has_default_scale)


def _is_published(given: dict[str, list[str]]) -> bool:
    parts = [name for group in PARTS_OF_PUBLISHED_SIZE for name in given.get(group, [])]
    return "recipe" in given or any(not name.startswith(LAPTOP_PARTS) for name in parts)


def top_level_keys(config_name: str, folders: Sequence[Path]) -> set[str]:
    """Keys and groups of a primary configuration, with those of the configurations that it includes.

    Raises:
        ConfigError: there is no such configuration.
    """
    file = next(
        (folder / f"{config_name}.yaml" for folder in folders if (folder / f"{config_name}.yaml").is_file()), None
    )
    if file is None:
        raise ConfigError(f"no {config_name}.yaml", where=", ".join(map(str, folders)))
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    keys = {str(key) for key in content if key not in ("defaults", "hydra")}
    for entry in content.get("defaults", []):
        if isinstance(entry, dict):
            words = str(next(iter(entry))).split()
            keys |= {words[-1].split("@")[0]} if words[0] != "override" else set()
        elif entry != "_self_":
            keys |= top_level_keys(entry, folders)
    return keys


def _parse(text: str, known: dict[str, list[str]], errors: list[MmexpError]) -> Override | None:
    if "=" not in text and not text.startswith("~"):
        owners = [group for group, choices in known.items() if text in choices]
        fix = f"{owners[0]}={text}" if owners else "key=value"
        errors.append(ConfigError(f"{text!r} is no override", expected="key=value", where="command line", fix=fix))
        return None
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        fix = "quote values with spaces, commas or brackets twice: 'key=\"a b\"'"
        errors.append(ConfigError(f"cannot be read: {reason}", where=text, fix=fix))
        return None


def _forced(text: str, override: Override, known: dict[str, list[str]]) -> str:
    is_plain = override.type == OverrideType.CHANGE and override.key_or_group not in known
    if not is_plain and override.type == OverrideType.CHANGE and override.value() is None:
        group = override.key_or_group  # Hydra has no null for a choice
        return f"{group}=none" if "none" in known[group] else f"~{group}"
    return f"++{text}" if is_plain and not override.key_or_group.startswith("hydra") else text


def _mistakes(override: Override, known: dict[str, list[str]], top: set[str]) -> list[MmexpError]:
    key = override.key_or_group
    first = key.split(".")[0]
    if first.split("/")[0] == "hydra":
        return []
    if key in known and key in top:
        return [error for choice in _choices(override) for error in _wrong_choice(key, choice, known[key])]
    if first not in top:
        close = nearest(first, top)
        fix = close + (override.input_line or "").lstrip("+~")[len(first) :] if close else None
        return [ConfigError("unknown group or key", expected=listing(top), where=key, fix=fix)]
    return []


def _choices(override: Override) -> list[str]:
    if override.type == OverrideType.DEL or isinstance(override.value(), dict):
        return []
    if override.is_sweep_override():
        if not override.is_choice_sweep():
            return []  # glob(*) and the like choose among what there is
        values = [text.strip("'\"") for text in override.sweep_string_iterator()]
        return [part.strip() for text in values for part in text.strip("[]").split(",")]
    value = override.value()
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item is not None]


def _wrong_choice(group: str, choice: str, valid: list[str]) -> list[MmexpError]:
    if choice in valid or choice in ("null", ""):
        return []
    close = nearest(choice, valid)
    fix = f"{group}={close}" if close else None
    return [ConfigError(f"no choice {choice!r}", expected=f"one of {', '.join(valid)}", where=group, fix=fix)]
