"""Every mistake of a configuration at once, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf

from mmexp.config import typed
from mmexp.config.instantiate import build
from mmexp.config.names import listing, nearest
from mmexp.config.redact import localize
from mmexp.config.spine import COLLECTIONS, COMPONENTS, RunConfig
from mmexp.config.stage import cache_errors, evaluation_errors, stage_errors, storage_errors
from mmexp.config.unset import to_plain
from mmexp.errors import CheckpointError, ConfigError, MmexpError

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A configuration that is right in itself."""

    spine: RunConfig
    parts: Mapping[str, Any]
    """Component configs by the name of their node; `evaluation` and `logger` are mappings; an empty node is None."""
    plain: Mapping[str, Any]
    """The resolved configuration as plain containers."""


def check(
    cfg: DictConfig | Mapping[str, Any],
    registered: frozenset[str],
    skip: tuple[str, ...] = (),
    earlier: list[MmexpError] | None = None,
) -> Checked:
    """Resolves, types and instantiates a whole run configuration.

    Args:
        cfg: The composed configuration.
        registered: Import paths that may be built.
        skip: Component nodes, and keys of the command itself, that are not needed and not looked at.
        earlier: Mistakes already found (on the command line), to be reported together with those found here.

    Raises:
        ConfigError: every mistake, each with its config path.
    """
    plain, errors = to_plain(cfg, skip)
    errors = [*(earlier or []), *errors]
    names = [field.name for field in fields(RunConfig)]
    errors += unknown_keys(plain, [*names, *COMPONENTS, *COLLECTIONS, *skip])
    spine = typed.build_dataclass(RunConfig, {key: plain[key] for key in names if key in plain}, "", errors)
    parts: dict[str, Any] = {}
    for name in (name for name in COMPONENTS + COLLECTIONS if name not in skip):
        empty = {} if name in COLLECTIONS else None
        parts[name] = build(plain[name], name, registered, errors) if plain.get(name) else empty
    if isinstance(spine, RunConfig):
        errors += stage_errors(spine.stage)
        errors += cache_errors(spine.stage, parts.get("encoder")) if spine.processor.feature_cache != "none" else []
        errors += storage_errors(spine.stage.policy, parts.get("llm"), parts.get("trainer"))
        errors += evaluation_errors(parts.get("evaluation"), parts.get("trainer"))
    errors += _part_errors(parts)
    if errors:
        raise ConfigError.collect(errors)
    return Checked(spine=spine, parts=parts, plain=plain)


def check_own(cls: type[_T], cfg: DictConfig | Mapping[str, Any]) -> _T:
    """The typed keys of a command that is no run, for example `check_own(ChatConfig, invocation.cfg)`.

    Raises:
        ConfigError: every key that is unknown, missing or of the wrong type.
    """
    plain, errors = to_plain(cfg)
    own = typed.build_dataclass(cls, plain, "", errors)
    if errors:
        raise ConfigError.collect(errors)
    return own


def check_besides(cls: type[_T], cfg: DictConfig) -> _T:
    """The typed keys that a command takes besides those of a run, for example `check_besides(PreviewConfig, cfg)`.

    Raises:
        ConfigError: every key that is missing or of the wrong type.
    """
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # a dataclass
    return check_own(cls, {name: cfg[name] for name in names if not OmegaConf.is_missing(cfg, name)})


def resolve(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Plain containers with every interpolation resolved.

    Raises:
        ConfigError: every value that is missing or cannot be resolved.
    """
    plain, errors = to_plain(cfg)
    if errors:
        raise ConfigError.collect(errors)
    return plain


def load_run_config(run_dir: Path) -> dict[str, Any]:
    """The configuration of a run directory: read with a safe loader, nothing in it is resolved or trusted.

    Pass it through `check` with the targets of the package and of this command line's `--config-dir`: what it names
    beyond those is refused.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    file = Path(run_dir).expanduser() / "config.yaml"
    if not file.is_file():
        raise CheckpointError(
            "no config.yaml",
            expected="a run directory, outputs/<name>/<stage>/<run_id>",
            where=str(run_dir),
            fix="`ls outputs/*/*/` shows the runs there are",
        )
    try:
        plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"not YAML: {' '.join(str(error).split())[:200]}", where=str(file)) from error
    if not isinstance(plain, dict):
        raise CheckpointError("not a mapping", where=str(file))
    return localize(plain)


def unknown_keys(plain: Mapping[str, Any], known: list[str]) -> list[MmexpError]:
    """One error for each top-level key that nothing reads."""
    errors: list[MmexpError] = []
    for key in plain:
        if key not in known:
            errors.append(ConfigError("unknown key", expected=listing(known), where=key, fix=nearest(key, known)))
    return errors


def _part_errors(parts: Mapping[str, Any]) -> list[MmexpError]:
    """What the choice of one part says about another."""
    errors: list[MmexpError] = []
    if {"encoder", "connector"} <= parts.keys() and (parts["encoder"] is None) != (parts["connector"] is None):
        lone = "connector" if parts["encoder"] is None else "encoder"
        errors.append(
            ConfigError(
                f"{lone} without its partner",
                expected="both an encoder and a connector, or neither",
                where=lone,
                fix="encoder=none connector=none for text only",
            )
        )
    if "llm" in parts and parts["llm"] is None:
        errors.append(ConfigError("no LLM", expected="an LLM, which also brings the tokenizer", where="llm"))
    return errors
