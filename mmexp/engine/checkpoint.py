"""Checkpoints to resume from: only what trains, written whole or not at all, checked when read."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mmexp.engine.manifest import require_space, sha256
from mmexp.errors import CheckpointError
from mmexp.whole import write_text

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d+)\.ckpt$")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Streams into a temporary file beside the target, flushes it to the disk, hashes it, and only then renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        require_space(target.parent, 2 * _num_bytes(checkpoint))
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            write_text(target.with_suffix(".sha256"), sha256(temporary))
            temporary.replace(target)
            _flush_folder(target.parent)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"could not be written: {error}", where=str(target)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return torch.load(Path(path), map_location=map_location or "cpu", weights_only=True)


def sweep(folder: Path) -> None:
    """Removes what a kill in the middle of a write has left; call it when no other process works on the run."""
    for file in folder.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def is_broken(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a number in any of these tensors is not finite."""
    return not all(bool(torch.isfinite(tensor).all()) for tensor in state.values() if tensor.is_floating_point())


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest step whose hash is right; damaged ones are named in the log and passed over.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    files = sorted((file for file in folder.glob("step_*.ckpt")), key=step_of, reverse=True)
    for file in files:
        digest = file.with_suffix(".sha256")
        if digest.is_file() and digest.read_text(encoding="utf-8").strip() == sha256(file):
            return file
        log.warning("%s is damaged (its hash differs); using the one before", file)
    if files:
        raise CheckpointError(
            "every checkpoint is damaged",
            where=str(folder),
            fix="start again with another run_id, or remove the folder",
        )
    return None


def step_of(file: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    match = _NAME.search(file.name)
    return int(match.group(1)) if match else -1


def prune(folder: Path, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints."""
    for file in sorted(folder.glob("step_*.ckpt"), key=step_of, reverse=True)[keep:]:
        file.unlink()
        file.with_suffix(".sha256").unlink(missing_ok=True)


def trained_names(module: nn.Module) -> set[str]:
    """Names of what a checkpoint holds: parameters that train, and buffers of modules that train."""
    names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    training = {name.rsplit(".", 1)[0] for name in names}
    persistent = module.state_dict().keys()
    buffers = {name for name, _ in module.named_buffers() if name in persistent}
    return names | {name for name in buffers if name.rsplit(".", 1)[0] in training}


def check_state(saved: Mapping[str, torch.Tensor], module: nn.Module) -> None:
    """Compares a checkpoint's tensors with what trains here.

    Raises:
        CheckpointError: names or shapes differ; the message lists them.
    """
    own = module.state_dict()
    wanted = trained_names(module)
    missing = sorted(wanted - saved.keys())
    surplus = sorted(saved.keys() - wanted)
    shapes = [
        f"{name} {tuple(saved[name].shape)}, here {tuple(own[name].shape)}"
        for name in sorted(wanted & saved.keys())
        if saved[name].shape != own[name].shape
    ]
    if missing or surplus or shapes:
        lines = [f"{len(missing)} missing: {', '.join(missing[:4])}"] if missing else []
        lines += [f"{len(surplus)} not trained here: {', '.join(surplus[:4])}"] if surplus else []
        lines += [f"{len(shapes)} of another shape: {'; '.join(shapes[:4])}"] if shapes else []
        raise CheckpointError(
            "; ".join(lines),
            expected="the tensors that train in this run",
            where="checkpoint",
            fix="resume with the configuration that wrote it; for its weights only, stage.init_from=<run>",
        )


def _flush_folder(folder: Path) -> None:
    """Makes a rename in it last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _num_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_num_bytes(entry) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_num_bytes(entry) for entry in value)
    return 64
