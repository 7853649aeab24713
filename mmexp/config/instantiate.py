"""The one door from configuration to objects.

Only import paths that stand as `_target_` in this package's `conf/` or in the user's own `--config-dir` are let
through: an exact set, compared before anything is imported. A configuration inside a run or model folder adds nothing.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mmexp.errors import ConfigError, MmexpError

_TARGET = re.compile(r"^\s*(?:-\s*)?_target_:\s*[\"']?([\w.]+)[\"']?\s*(?:#.*)?$", re.MULTILINE)


def registered_targets(conf_dirs: Sequence[Path]) -> frozenset[str]:
    """Every import path that a YAML file below these folders names as `_target_`."""
    files = (file for root in conf_dirs for file in Path(root).rglob("*.yaml"))
    return frozenset(target for file in files for target in _TARGET.findall(file.read_text(encoding="utf-8")))


def instantiate(node: Any, where: str, registered: frozenset[str]) -> Any:
    """The object that a plain configuration node describes, built from the inside out.

    Args:
        node: Plain containers (no DictConfig), `_target_` anywhere.
        where: Config path of the node, for messages.
        registered: What may be built; see `registered_targets`.

    Raises:
        ConfigError: all mistakes in the node at once: unknown targets, keys and types, missing values.
    """
    errors: list[MmexpError] = list(unregistered(node, where, registered))
    if not errors:
        value = _build(node, where, errors)
        if not errors:
            return value
    raise ConfigError.collect(errors)


def unregistered(node: Any, where: str, registered: frozenset[str]) -> list[ConfigError]:
    """One error for every `_target_` in the tree that is not in the set; nothing is imported."""
    if isinstance(node, Mapping):
        errors = [error for key, child in node.items() for error in unregistered(child, f"{where}.{key}", registered)]
        target = node.get("_target_")
        if target is not None and target not in registered:
            close = difflib.get_close_matches(str(target), registered, n=1)
            errors.append(
                ConfigError(
                    f"{target!r} is not a registered component",
                    expected="an import path that conf/ or your own --config-dir folder names",
                    where=f"{where}._target_",
                    fix=f"{close[0]}?" if close else "put a YAML choice for it into a folder and pass --config-dir",
                )
            )
        return errors
    if isinstance(node, (list, tuple)):
        return [e for index, child in enumerate(node) for e in unregistered(child, f"{where}[{index}]", registered)]
    return []


def typed(cls: type, values: Mapping[str, Any], where: str) -> tuple[Any, list[MmexpError]]:
    """An instance of the dataclass `cls`, or every reason why these values cannot be one."""
    known = {field.name: field for field in fields(cls) if field.init}
    hints = _hints(cls)
    errors = [_unknown(key, list(known), where) for key in values if key not in known]
    accepted: dict[str, Any] = {}
    for name, field in known.items():
        if name in values:
            accepted[name] = _checked(values[name], hints.get(name, Any), f"{where}.{name}".lstrip("."), errors)
        elif field.default is MISSING and field.default_factory is MISSING:
            errors.append(ConfigError("missing", expected=_name(hints.get(name, Any)), where=f"{where}.{name}"))
    if errors:
        return None, errors
    try:
        return cls(**accepted), []
    except MmexpError as error:
        return None, [error]


def _build(node: Any, where: str, errors: list[MmexpError]) -> Any:
    if isinstance(node, Mapping):
        children = {key: _build(child, f"{where}.{key}", errors) for key, child in node.items() if key != "_target_"}
        if "_target_" not in node:
            return children
        return _construct(_imported(node["_target_"], where, errors), children, where, errors)
    if isinstance(node, (list, tuple)):
        return [_build(child, f"{where}[{index}]", errors) for index, child in enumerate(node)]
    return node


def _imported(target: str, where: str, errors: list[MmexpError]) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        errors.append(
            ConfigError(
                f"cannot import {target}: {error}",
                where=f"{where}._target_",
                fix="check the spelling, and that the package is installed in this environment",
            )
        )
        return None


def _construct(target: Any, values: dict[str, Any], where: str, errors: list[MmexpError]) -> Any:
    if target is None:
        return None
    if is_dataclass(target) and isinstance(target, type):
        value, problems = typed(target, values, where)
        errors.extend(problems)
        return value
    signature = inspect.signature(target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    problems = [_unknown(key, list(signature.parameters), where) for key in values if key not in signature.parameters]
    missing = [
        ConfigError("missing", where=f"{where}.{name}")
        for name, p in signature.parameters.items()
        if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and name not in values
    ]
    problems = missing if takes_any else problems + missing
    errors.extend(problems)
    return None if problems else target(**values)


def _unknown(key: str, known: list[str], where: str) -> ConfigError:
    close = difflib.get_close_matches(str(key), known, n=1)
    path = f"{where}.{key}".lstrip(".")
    parent = f"{where}." if where else ""
    return ConfigError(
        "unknown key",
        expected=f"one of {', '.join(known)}" if known else "no settings",
        where=path,
        fix=f"{parent}{close[0]}" if close else None,
    )


def _checked(value: Any, hint: Any, where: str, errors: list[MmexpError]) -> Any:
    """`value` as `hint` wants it; a mistake is added to `errors`."""
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        nested, problems = typed(hint, value, where)
        errors.extend(problems)
        return nested
    from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

    value = _tuples(value, hint)
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except (PydanticSchemaGenerationError, TypeError, NameError):
        return value  # a type of the user's own that cannot be checked
    except Exception as error:
        if "config" not in str(error):
            raise
        adapter = TypeAdapter(hint)
    try:
        adapter.validate_python(value)
    except ValidationError:
        errors.append(_wrong_type(value, hint, where))
    return value


def _wrong_type(value: Any, hint: Any, where: str) -> ConfigError:
    choices = [choice for choice in get_args(hint) if isinstance(choice, str)]
    close = difflib.get_close_matches(str(value), choices, n=1)
    found = "???, a value that you must give" if value == "???" else f"{value!r} ({type(value).__name__})"
    return ConfigError(found, expected=_name(hint), where=where, fix=f"{where}={close[0]}" if close else None)


def _tuples(value: Any, hint: Any) -> Any:
    """Lists as tuples where the hint says tuple: YAML has no tuples."""
    if isinstance(value, list) and get_origin(hint) is tuple:
        return tuple(value)
    return value


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # an import that exists for type checkers only
        return {}


def _name(hint: Any) -> str:
    if get_args(hint) and all(isinstance(choice, str) for choice in get_args(hint)):
        return " or ".join(get_args(hint))
    text = getattr(hint, "__name__", None) if not get_args(hint) else None
    return (text or str(hint)).replace("typing.", "").replace("collections.abc.", "").replace("NoneType", "None")
