"""Weights of other programs as the start of a stage: read without running code, placed exactly, the rest is listed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmexp.errors import CheckpointError
from mmexp.hf.base import State

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_WRAPPERS = ("model", "state_dict", "module")
_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tensors that fill one subtree of a part: all of it, or the checkpoint does not fit."""

    part: str
    """Name of the part, as a policy has it."""
    prefix: str
    """Where the subtree begins; empty for the whole part."""
    state: State
    """By their names in the part."""
    optional: frozenset[str] = frozenset()
    """Names that the part may lack: blocks behind the selected layer, a text path of a stripped connector."""


@dataclass(kw_only=True)
class Placement:
    """What a checkpoint becomes here."""

    groups: list[Group] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """Tensors that have no use here, by the names of the file."""


def is_checkpoint(path: Path) -> bool:
    """Whether it is a file of tensors, or a folder with one."""
    if path.is_dir():
        return any((path / name).is_file() for name in (*_INDEXES, *_SINGLE))
    return path.is_file() and path.suffix in SUFFIXES


def read_state(path: Path) -> State:
    """All tensors by name. Pickles are read weights-only, so that a file cannot run code.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    state: State = {}
    for file in _files(path):
        state |= _read_file(file)
    return state


def read_config(path: Path) -> dict[str, Any]:
    """The folder's config.json; empty for a file or a folder without one."""
    file = path / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if path.is_dir() and file.is_file() else {}


def place(parts: Mapping[str, nn.Module], placement: Placement, where: str) -> dict[str, set[str]]:
    """Copies every group into its part, after all of them were compared with it.

    Returns:
        Per part the names that were set, without parts in which that changed nothing.

    Raises:
        CheckpointError: a part, a name or a shape differs; nothing has changed then.
    """
    problems: list[str] = []
    fitting: list[tuple[nn.Module, State]] = []
    changed: dict[str, set[str]] = {}
    for group in placement.groups:
        if group.part not in parts:
            problems.append(f"weights of a part {group.part!r}, here are {', '.join(parts)}")
            continue
        state, found = _fit(parts[group.part], group, placement.unused)
        problems += found
        fitting.append((parts[group.part], state))
        changed.setdefault(group.part, set()).update(state)
    if problems or not fitting:
        raise CheckpointError(
            f"{len(problems)} differences: {'; '.join(problems[:4])}" if problems else "nothing in it has a place here",
            expected="weights of this encoder, connector and llm",
            where=where,
            fix="choose the parts that belong to it (encoder.path, connector, llm.path)",
        )
    same = {part for part in changed if all(_is_same(m, s) for m, s in fitting if m is parts[part])}
    for module, state in fitting:
        module.load_state_dict(state, strict=False)
    _tell(changed, placement.unused, where)
    return {part: names for part, names in changed.items() if part not in same}


def _is_same(module: nn.Module, state: State) -> bool:
    """Whether the module holds these very tensors already, as where its base weights come from the same checkpoint."""
    own = module.state_dict()
    return all(torch.equal(own[name], tensor.to(own[name].dtype)) for name, tensor in state.items())


def _fit(module: nn.Module, group: Group, unused: list[str]) -> tuple[State, list[str]]:
    """The tensors that the part takes, and what differs."""
    own = {name: tensor for name, tensor in module.state_dict().items() if name.startswith(group.prefix)}
    state: State = {}
    problems: list[str] = []
    for name, tensor in group.state.items():
        if name not in own:
            if name in group.optional:
                unused.append(f"{group.part} {name}")
            else:
                problems.append(f"no {name} in this {group.part}")
            continue
        state[name] = _rows(tensor, own[name], f"{group.part} {name}", unused)
        if state[name].shape != own[name].shape:
            problems.append(f"{name} is {tuple(tensor.shape)}, here {tuple(own[name].shape)}")
    given = {own[name].data_ptr() for name in state if not own[name].is_meta}
    missing = [name for name in own if name not in state and own[name].data_ptr() not in given]
    problems += [f"{group.part} {name} is missing" for name in missing]
    return state, problems


def _rows(tensor: torch.Tensor, own: torch.Tensor, name: str, unused: list[str]) -> torch.Tensor:
    """A table of token embeddings may have further rows there: for a placeholder, or to reach a round number."""
    is_table = name.endswith(("embed_tokens.weight", "lm_head.weight"))
    if is_table and tensor.dim() == 2 and tensor.shape[0] > own.shape[0] and tensor.shape[1] == own.shape[1]:
        unused.append(f"{name}, rows {own.shape[0]} to {tensor.shape[0] - 1}")
        return tensor[: own.shape[0]]
    return tensor


def _tell(changed: Mapping[str, set[str]], unused: Sequence[str], where: str) -> None:
    for part, names in changed.items():
        log.info("%s: %d tensors of %s", where, len(names), part)
    if unused:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        log.info("%s: not used here: %s%s", where, ", ".join(unused[:_SHOWN]), more)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for name in _INDEXES:
        if (path / name).is_file():
            index = json.loads((path / name).read_text(encoding="utf-8"))
            return [path / file for file in sorted(set(index["weight_map"].values()))]
    return [path / name for name in _SINGLE if (path / name).is_file()][:1]


def _read_file(file: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, SafetensorError, ValueError, EOFError) as error:
        raise _unreadable(file, error) from error
    except Exception as error:  # what the unpickler raises has no common class
        raise _unreadable(file, error) from error
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError("no tensors by name", expected="a state dict", where=str(file))
    return content


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return CheckpointError(
        f"cannot be read: {reason}",
        expected="safetensors, or a file of tensors that torch reads weights-only",
        where=str(file),
        fix="write it as safetensors with the program that made it",
    )
