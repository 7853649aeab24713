"""From OmegaConf to plain Python, where a value that cannot be had is reported and its place is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmexp.errors import ConfigError, MmexpError


class Unset:
    """Stands where a value could not be had; its error is already reported."""

    def __repr__(self) -> str:
        return "<unset>"


UNSET = Unset()


def holds_unset(value: Any) -> bool:
    """Whether `value` is, or holds in its containers, something that could not be had."""
    if isinstance(value, Mapping):
        return any(map(holds_unset, value.values()))
    return any(map(holds_unset, value)) if isinstance(value, list | tuple) else isinstance(value, Unset)


def to_plain(config: Any, skip: tuple[str, ...] = ()) -> tuple[Any, list[MmexpError]]:
    """Dictionaries, lists and scalars with every interpolation resolved, and one error for each value that has none.

    Plain input stays as it is: an interpolation in it is text, so a file that is not the user's resolves nothing.

    Args:
        config: DictConfig, ListConfig or plain containers.
        skip: Top-level keys that are left out and not looked at.
    """
    errors: list[MmexpError] = []
    if isinstance(config, DictConfig):
        return {str(key): _child(config, key, str(key), errors) for key in config if key not in skip}, errors
    return _walk(config, "", errors), errors


def _walk(node: Any, where: str, errors: list[MmexpError]) -> Any:
    if isinstance(node, DictConfig):
        return {str(key): _child(node, key, f"{where}.{key}", errors) for key in node}
    if isinstance(node, ListConfig):
        return [_child(node, index, f"{where}[{index}]", errors) for index in range(len(node))]
    if isinstance(node, Mapping):
        return {str(key): _walk(value, f"{where}.{key}".lstrip("."), errors) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_walk(value, f"{where}[{index}]", errors) for index, value in enumerate(node)]
    if node == "???":
        errors.append(missing(where))
        return UNSET
    return node


def missing(where: str) -> ConfigError:
    """The error for a value that only the user can give."""
    return ConfigError("not given", expected="a value, since there is no default", where=where, fix=f"{where}=...")


def _child(node: DictConfig | ListConfig, key: Any, where: str, errors: list[MmexpError]) -> Any:
    if OmegaConf.is_missing(node, key):
        errors.append(missing(where))
        return UNSET
    try:
        value = node[key]
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        errors.append(ConfigError(f"cannot be resolved: {reason}", where=where, fix=f"{where}=<a value>"))
        return UNSET
    return _walk(value, where, errors)
