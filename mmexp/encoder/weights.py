"""Files of encoder weights: read without running code, loaded exactly, position tables resized."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional

from mmexp.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

State = dict[str, "Tensor"]
_WRAPPERS = ("state_dict", "model", "module")
"""Keys under which training scripts put the weights beside optimizer and epoch."""


def read_state(file: Path, prefix: str = "") -> State:
    """The tensors whose names start with `prefix`, named without it. Nothing in the file is executed.

    Raises:
        CheckpointError: the file is damaged, holds code, or has no such tensor.
    """
    state = _safetensors(file, prefix) if file.suffix == ".safetensors" else _pickled(file)
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not found:
        names = ", ".join(list(state)[:4]) or "no tensors"
        raise CheckpointError(names, expected=f"tensors named {prefix}...", where=str(file))
    return found


def read_folder(folder: Path, prefix: str) -> State:
    """The tensors of a transformers folder whose names start with `prefix`, under their whole names.

    Raises:
        CheckpointError: there are no safetensors files, or none of them has such a tensor.
    """
    state: State = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= {name: tensor for name, tensor in _safetensors(file, prefix).items() if name.startswith(prefix)}
    if not state:
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(f"no {prefix}* in {names}", expected="safetensors files with a vision model",
                              where=str(folder))  # fmt: skip
    return state


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], file: Path, left_out: Sequence[str] = ()) -> None:
    """Puts `state` into `module`, which may be on the meta device; the module's own dtypes are kept.

    Args:
        module: Takes the tensors as they are where dtypes agree.
        state: By name.
        file: For messages.
        left_out: Prefixes of what the file may have beyond the module: parts that the recipe takes out.

    Raises:
        CheckpointError: names or shapes differ; the message lists them.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    beyond = sorted(state.keys() - own.keys())
    surplus = [name for name in beyond if not name.startswith(tuple(left_out))]
    shapes = [
        f"{name} {tuple(state[name].shape)}, here {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    lines = [f"{len(missing)} missing: {', '.join(missing[:4])}"] if missing else []
    lines += [f"{len(surplus)} that nothing here takes: {', '.join(surplus[:4])}"] if surplus else []
    lines += [f"{len(shapes)} of another shape: {'; '.join(shapes[:4])}"] if shapes else []
    if lines:
        raise CheckpointError("; ".join(lines), expected="exactly the tensors of this encoder", where=str(file),
                              fix="the file that belongs to encoder's family, width and blocks, whole")  # fmt: skip
    if beyond:
        log.info("%s: %d tensors are left out, such as %s", file.name, len(beyond), beyond[0])
    module.load_state_dict({name: state[name].to(tensor.dtype) for name, tensor in own.items()}, assign=True)


def resize_positions(
    table: Tensor, grid: tuple[int, int], num_prefix: int, align_corners: bool = False, antialias: bool = False
) -> Tensor:
    """A table for a square grid as one for `grid`, bicubic in float32; the rows of prefix tokens stay.

    Args:
        table: float[prefix + rows * columns, E]
        grid: The wanted rows and columns.
        num_prefix: Rows before the patches.
        align_corners: As of `torch.nn.functional.interpolate`; published recipes differ.
        antialias: Likewise.
    """
    prefix, patches = table[:num_prefix], table[num_prefix:]
    side = round(len(patches) ** 0.5)
    if (side, side) == grid:
        return table
    maps = patches.float().unflatten(0, (side, side)).permute(2, 0, 1)[None]
    maps = functional.interpolate(maps, grid, mode="bicubic", align_corners=align_corners, antialias=antialias)
    return torch.cat([prefix, maps[0].flatten(1).T.to(table.dtype)])


def _safetensors(file: Path, prefix: str) -> State:
    try:
        with safe_open(file, framework="pt") as opened:
            names: list[str] = list(opened.keys())
            wanted = [name for name in names if name.startswith(prefix)]
            if not wanted:
                return {name: torch.empty(0) for name in names[:4]}
            return {name: opened.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(str(error), where=str(file)) from error


def _pickled(file: Path) -> State:
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"cannot be read as tensors: {str(error).splitlines()[0][:160]}",
            expected="a file of plain tensors; files that hold code (TorchScript) are not run",
            where=str(file),
        ) from error
    while isinstance(state, Mapping) and (inner := next((key for key in _WRAPPERS if _is_state(state.get(key))), None)):
        state = state[inner]
    if not isinstance(state, Mapping):
        raise CheckpointError(type(state).__name__, expected="a dictionary of tensors", where=str(file))
    tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    parallel = bool(tensors) and all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if parallel else name: value for name, value in tensors.items()}


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(entry, torch.Tensor) for entry in value.values())
