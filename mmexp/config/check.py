"""Every mistake of a configuration at once, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmexp.config.instantiate import _unknown, instantiate, typed
from mmexp.config.spine import COLLECTIONS, COMPONENTS, RunConfig
from mmexp.errors import CheckpointError, ConfigError, MmexpError


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A configuration that is right in itself."""

    spine: RunConfig
    parts: Mapping[str, Any]
    """Component configs by the name of their node; `evaluation` and `logger` are mappings; an empty node is None."""
    plain: Mapping[str, Any]
    """The resolved configuration as plain containers."""


def check(cfg: DictConfig | Mapping[str, Any], registered: frozenset[str], skip: tuple[str, ...] = ()) -> Checked:
    """Resolves, types and instantiates a whole run configuration.

    Args:
        cfg: The composed configuration.
        registered: Import paths that may be built.
        skip: Component nodes that are not needed and not looked at.

    Raises:
        ConfigError: every mistake, each with its config path.
    """
    plain = resolve(cfg)
    errors: list[MmexpError] = []
    allowed = [field.name for field in fields(RunConfig)] + list(COMPONENTS + COLLECTIONS)
    errors += [_unknown(key, allowed, "") for key in plain if key not in allowed]
    spine_values = {key: value for key, value in plain.items() if key in {f.name for f in fields(RunConfig)}}
    spine, problems = typed(RunConfig, spine_values, "")
    errors += problems
    parts: dict[str, Any] = {}
    for name in (name for name in COMPONENTS + COLLECTIONS if name not in skip):
        try:
            node = plain.get(name)
            parts[name] = instantiate(node, name, registered) if node else ({} if name in COLLECTIONS else None)
        except ConfigError as error:
            errors += error.errors or [error]
    if spine is not None:
        errors += _cross_checks(spine, parts)
    if errors:
        raise ConfigError.collect(errors)
    return Checked(spine=spine, parts=parts, plain=plain)


def resolve(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Plain containers with every interpolation resolved; `???` stays and is reported by type."""
    if not isinstance(cfg, DictConfig):
        return dict(cfg)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0], where=str(getattr(error, "full_key", "") or "config")) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def load_run_config(run_dir: Path) -> dict[str, Any]:
    """The configuration of a run directory: read with a safe loader, nothing in it is resolved or trusted.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    file = Path(run_dir) / "config.yaml"
    if not file.is_file():
        raise CheckpointError(
            "no config.yaml",
            expected="a run directory, outputs/<name>/<stage>/<run_id>",
            where=str(run_dir),
            fix="`ls outputs/*/*/` shows the runs there are",
        )
    try:
        plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CheckpointError(f"not YAML: {str(error).splitlines()[0]}", where=str(file)) from error
    if not isinstance(plain, dict):
        raise CheckpointError("not a mapping", where=str(file))
    return plain


def _cross_checks(spine: RunConfig, parts: Mapping[str, Any]) -> list[MmexpError]:
    """What two settings say about each other."""
    errors: list[MmexpError] = []
    stage = spine.stage
    if stage.micro_batch_size < 1 or stage.batch_size % stage.micro_batch_size:
        errors.append(
            ConfigError(
                f"{stage.batch_size}",
                expected=f"a multiple of stage.micro_batch_size={stage.micro_batch_size}",
                where="stage.batch_size",
            )
        )
    for name, low, high in (("warmup_ratio", 0.0, 1.0), ("lr", 0.0, float("inf")), ("epochs", 0.0, float("inf"))):
        value = getattr(stage, name)
        if not low <= value <= high:
            errors.append(ConfigError(f"{value}", expected=f"{low:g} to {high:g}", where=f"stage.{name}"))
    if ("encoder" in parts and "connector" in parts) and (parts["encoder"] is None) != (parts["connector"] is None):
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
