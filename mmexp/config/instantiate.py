"""The one door from configuration to objects.

Only import paths that stand as `_target_` in this package's `conf/` or in the user's own `--config-dir` are let
through: an exact set, compared before anything is imported. A configuration inside a run or model folder adds nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from mmexp.config import typed
from mmexp.config.names import nearest
from mmexp.config.unset import UNSET, holds_unset, to_plain
from mmexp.errors import ConfigError, MmexpError

TARGET = "_target_"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def registered_targets(conf_dirs: Sequence[Path]) -> frozenset[str]:
    """Every import path that a YAML file below these folders gives as `_target_`.

    Args:
        conf_dirs: The package's `conf/` and the user's `--config-dir`; never a run or model folder.

    Raises:
        ConfigError: a file is not YAML.
    """
    found: set[str] = set()
    for file in sorted(file for root in conf_dirs for file in Path(root).rglob("*.yaml")):
        try:
            _gather(yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER), found)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"not YAML: {' '.join(str(error).split())}", where=str(file)) from error
    return frozenset(found)


def instantiate(node: Any, where: str, registered: frozenset[str]) -> Any:
    """The object that a configuration node describes, built from the inside out.

    Args:
        node: A `_target_` node, or containers with such nodes anywhere inside.
        where: Config path of the node, for messages.
        registered: What may be built; see `registered_targets`.

    Raises:
        ConfigError: all mistakes in the node at once: unknown targets, keys and types, missing values.
    """
    plain, errors = to_plain({where: node})
    value = build(plain[where], where, registered, errors)
    if errors:
        raise ConfigError.collect(errors)
    return value


def build(node: Any, where: str, registered: frozenset[str], errors: list[MmexpError]) -> Any:
    """As `instantiate`, for plain input and with the mistakes added to `errors`; `UNSET` when there are any."""
    refused = unregistered(node, where, registered)
    errors += refused
    built = UNSET if refused else _build(node, where, errors)
    return UNSET if holds_unset(built) else built


def unregistered(node: Any, where: str, registered: frozenset[str]) -> list[ConfigError]:
    """One error for every `_target_` in the tree that is not in the set; nothing is imported."""
    if isinstance(node, Mapping):
        errors = [error for key, child in node.items() for error in unregistered(child, f"{where}.{key}", registered)]
        target = node.get(TARGET)
        if TARGET in node and not (isinstance(target, str) and target in registered):
            close = nearest(str(target), registered)
            own = "name it in a YAML file of your own folder and pass --config-dir <folder>"
            errors.append(
                ConfigError(
                    f"{target!r} is not a registered component",
                    expected="an import path that conf/ or your own --config-dir folder names",
                    where=f"{where}.{TARGET}",
                    fix=f"{where}.{TARGET}={close}" if close else own,
                )
            )
        return errors
    if isinstance(node, list | tuple):
        return [e for index, child in enumerate(node) for e in unregistered(child, f"{where}[{index}]", registered)]
    return []


def _gather(node: Any, found: set[str]) -> None:
    if isinstance(node, Mapping):
        if isinstance(target := node.get(TARGET), str):
            found.add(target)
        for value in node.values():
            _gather(value, found)
    elif isinstance(node, list):
        for value in node:
            _gather(value, found)


def _build(node: Any, where: str, errors: list[MmexpError]) -> Any:
    if isinstance(node, list | tuple):
        items = [_build(child, f"{where}[{index}]", errors) for index, child in enumerate(node)]
        return UNSET if holds_unset(items) else items
    if not isinstance(node, Mapping):
        return node
    children = {key: _build(child, f"{where}.{key}", errors) for key, child in node.items() if key != TARGET}
    if TARGET not in node:
        return children  # also with a child that failed: what takes the mapping checks the others
    target = _imported(node[TARGET], where, errors)
    return UNSET if target is None else _construct(target, children, where, errors)


def _imported(target: str, where: str, errors: list[MmexpError]) -> Callable[..., Any] | None:
    module, _, name = target.rpartition(".")
    path = f"{where}.{TARGET}"
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        fix = "check the spelling, and that the package is installed in this environment"
        errors.append(ConfigError(f"cannot import {target}: {error}", where=path, fix=fix))
        return None
    if not callable(found) or inspect.ismodule(found):
        errors.append(ConfigError(f"{target} is neither a class nor a function", where=path))
        return None
    return found


def _construct(target: Any, values: dict[str, Any], where: str, errors: list[MmexpError]) -> Any:
    if is_dataclass(target) and isinstance(target, type):
        return typed.build_dataclass(target, values, where, errors)
    before = len(errors)
    try:
        takes, is_open = typed.parameters(target)
    except (TypeError, ValueError):  # compiled code without a signature
        takes, is_open = {}, True
    named = {key: value for key, value in values.items() if key in takes or not is_open}
    errors += typed.name_errors(named, takes, where, getattr(target, "__name__", str(target)))
    checked = {
        key: typed.coerce(value, takes[key].hint, f"{where}.{key}", errors) if key in takes else value
        for key, value in values.items()
    }
    failed = len(errors) > before or holds_unset(checked)
    return UNSET if failed else typed.call(target, checked, where, errors)
