"""Plain values against type hints: every mismatch is reported with its config path, nothing is converted silently.

An integer may stand for a float and a list for a tuple; `"3"` is no integer and `1` is no boolean.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from mmexp.config.names import listing, nearest
from mmexp.config.unset import UNSET, Unset, holds_unset
from mmexp.errors import ConfigError, MmexpError


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One thing that a class or function takes."""

    hint: Any
    required: bool


def parameters(target: Any) -> tuple[dict[str, Parameter], bool]:
    """What `target` takes by name, and whether it takes any further name (`**kwargs`)."""
    if dataclasses.is_dataclass(target):
        missing = dataclasses.MISSING
        return {
            field.name: Parameter(
                _hint(field.type, target), field.default is missing and field.default_factory is missing
            )
            for field in dataclasses.fields(target)
            if field.init
        }, False
    found: dict[str, Parameter] = {}
    is_open = False
    for name, value in inspect.signature(target).parameters.items():
        if value.kind is value.VAR_KEYWORD:
            is_open = True
        elif value.kind in (value.POSITIONAL_OR_KEYWORD, value.KEYWORD_ONLY):
            found[name] = Parameter(_hint(value.annotation, target), value.default is value.empty)
    return found, is_open


def name_errors(given: Mapping[str, Any], takes: Mapping[str, Parameter], where: str, owner: str) -> list[MmexpError]:
    """One error for each key that is unknown and each that is missing."""
    errors: list[MmexpError] = []
    for key in given:
        if key not in takes:
            close = nearest(key, takes)
            fix = f"{_join(where, close)}=..." if close else None
            errors.append(
                ConfigError(f"{owner} has no such setting", expected=listing(takes), where=_join(where, key), fix=fix)
            )
    for key, parameter in takes.items():
        if parameter.required and key not in given:
            path = _join(where, key)
            errors.append(ConfigError(f"not given, and {owner} has no default for it", where=path, fix=f"{path}=..."))
    return errors


def build_dataclass(cls: type, values: Mapping[str, Any], where: str, errors: list[MmexpError]) -> Any:
    """An instance of `cls`, or `UNSET` with its mistakes added to `errors`."""
    takes, _ = parameters(cls)
    before = len(errors)
    errors += name_errors(values, takes, where, cls.__name__)
    checked = {
        key: coerce(value, takes[key].hint, _join(where, key), errors) for key, value in values.items() if key in takes
    }
    if len(errors) > before or holds_unset(checked):
        return UNSET
    return call(cls, checked, where, errors)


def call(target: Any, values: Mapping[str, Any], where: str, errors: list[MmexpError]) -> Any:
    """`target(**values)`; what it complains about is added to `errors`."""
    try:
        return target(**values)
    except MmexpError as error:
        if error.where in values:  # the component knows the name of its setting, but not where it stands
            error.where = _join(where, str(error.where))
            error.args = (error.render(),)
        errors.append(error)
    except (TypeError, ValueError) as error:
        errors.append(ConfigError(str(error).splitlines()[0], where=where))
    return UNSET


def coerce(value: Any, hint: Any, where: str, errors: list[MmexpError]) -> Any:
    """`value` as `hint` wants it, or `UNSET` with the reason added to `errors`."""
    if isinstance(value, Unset) or hint is Any:
        return value
    if cls := _dataclass_of(hint):
        if isinstance(value, Mapping):
            return build_dataclass(cls, value, where, errors)
        if isinstance(value, cls) or (value is None and hint is not cls):
            return value
        errors.append(
            ConfigError(f"{value!r} is {_kind(value)}", expected=f"the settings of {cls.__name__}", where=where)
        )
        return UNSET
    if (cls := _dataclass_of_values(hint)) and isinstance(value, Mapping):
        built = {str(key): coerce(inner, cls, _join(where, str(key)), errors) for key, inner in value.items()}
        return UNSET if holds_unset(built) else built
    if holds_unset(value):
        return UNSET
    adapter = _adapter(hint)
    if adapter is None:
        return value
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):  # holds objects that the door has built
        text = None
    try:
        return adapter.validate_python(value) if text is None else adapter.validate_json(text, strict=True)
    except ValidationError as error:
        errors.append(_mismatch(value, hint, where, error))
    return UNSET


def _mismatch(value: Any, hint: Any, where: str, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    close = nearest(str(value), map(str, choices))
    steps = [str(step) for step in first["loc"] if isinstance(value, Mapping | list | tuple)]
    path = ".".join([where, *steps[:1]])
    shown = first["input"] if steps else value
    fix = f"{where}={close}" if close else None
    return ConfigError(f"{shown!r} is {_kind(shown)}", expected=_readable(hint), where=path, fix=fix)


_KINDS = {"str": "text", "int": "an integer", "float": "a number", "bool": "true or false", "NoneType": "null"}


def _kind(value: Any) -> str:
    name = type(value).__name__
    return {"dict": "a mapping", "list": "a list"}.get(name) or _KINDS.get(name) or f"an object of {name}"


def _readable(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_readable(arg) for arg in args)
    if origin is not None and isinstance(origin, type):
        inner = [_readable(arg) for arg in args if arg is not Ellipsis]
        if issubclass(origin, Mapping):
            return f"a mapping of {inner[-1]}" if inner else "a mapping"
        return f"a list of {inner[0]}" if inner else "a list"
    name = getattr(hint, "__name__", str(hint))
    return _KINDS.get(name, "anything" if hint is Any else name)


def _dataclass_of(hint: Any) -> type | None:
    """The dataclass in `X` or `X | None`."""
    options = [arg for arg in get_args(hint) if arg is not type(None)] if _is_union(hint) else [hint]
    found = options[0] if len(options) == 1 else None
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None


def _dataclass_of_values(hint: Any) -> type | None:
    """The dataclass in `Mapping[str, X]`."""
    origin, args = get_origin(hint), get_args(hint)
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping) and len(args) == 2
    return _dataclass_of(args[1]) if is_mapping else None


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
        return None  # a hint that says nothing about plain values


def _hint(annotation: Any, owner: Any) -> Any:
    """The annotation as a type; `Any` where it cannot be evaluated (names that exist for type checkers only)."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    for cls in [*getattr(owner, "__mro__", ()), owner]:
        module = sys.modules.get(getattr(cls, "__module__", ""))
        try:
            return eval(annotation, vars(module) if module else {})  # the text is source code of the imported class
        except (NameError, AttributeError, TypeError):
            continue
    return Any


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
