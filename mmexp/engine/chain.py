"""From stage to stage: the weights that a run hands on, and how the next one takes them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmexp.engine.manifest import RunDir, require_space, sha256
from mmexp.errors import CheckpointError
from mmexp.hf import load_foreign
from mmexp.tuning import has_adapter, merge_adapter, save_adapter
from mmexp.whole import writing

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

Changed = dict[str, set[str]]
"""Per part the names of the tensors that differ from the base weights."""
Start = RunDir | Path
"""A finished run, or a checkpoint of another program."""


def load_starts(parts: Mapping[str, nn.Module], starts: Sequence[Start], *, is_whole: bool = True) -> Changed:
    """Puts the weights of every start into `parts`, one after the other.

    Args:
        parts: Parts of a model by name.
        starts: Whose weights.
        is_whole: Whether `parts` are all of the model; otherwise what runs have for others is passed over.

    Returns:
        What now differs from the base weights.

    Raises:
        CheckpointError: one of them does not belong to this model.
    """
    changed: Changed = {}
    for start in starts:
        found = load_weights(parts, start, is_whole) if isinstance(start, RunDir) else load_foreign(parts, start)
        for part, names in found.items():
            changed.setdefault(part, set()).update(names)
    return changed


def load_weights(parts: Mapping[str, nn.Module], run: RunDir, is_whole: bool = True) -> Changed:
    """Puts what `run` handed on into `parts`: exactly, or not at all.

    Adapters are folded into the part's own weights, so the next stage may train them fully or add new ones. A part may
    say in `leaves_behind`, a pattern of names, what a fuller form of it has and it does not; the log lists what was
    left. The heads of a loss are left behind where the loss has gone.

    Returns:
        What now differs from the base weights.

    Raises:
        CheckpointError: the run did not finish, its files are damaged, or they belong to another model.
    """
    manifest = run.manifest()
    if not manifest:
        raise CheckpointError(
            "no manifest.json",
            expected="a run directory of mmexp",
            where=str(run.path),
            fix="check stage.init_from / run",
        )
    if "weights" not in manifest:
        raise CheckpointError(
            f"the run is {manifest.get('status', 'unfinished')} and has no weights yet",
            where=str(run.path),
            fix="finish it first: the same command continues it",
        )
    damaged = run.damaged_weights(manifest)
    if damaged:
        raise CheckpointError(f"damaged or missing: {', '.join(damaged)}", where=str(run.path))
    changed: Changed = {}
    for entry in manifest["weights"]:
        name = entry["part"]
        if name not in parts and not is_whole:
            continue
        if name == "objective" and name not in parts:
            log.info("the heads of the loss stay behind: %s", run.path)
            continue  # another objective, and inference, have no use for them
        if name not in parts:
            raise CheckpointError(
                f"weights of a part {name!r}", expected=f"one of {', '.join(parts)}", where=str(run.path)
            )
        if entry["kind"] == "lora":
            merge_adapter(parts[name], run.weights / f"{name}_lora")
            changed[name] = {key for key, _ in parts[name].named_parameters()}
        else:
            changed[name] = _load_tensors(parts[name], run.weights / f"{name}.safetensors", name)
    return changed


def save_weights(parts: Mapping[str, nn.Module], changed: Changed, run: RunDir) -> None:
    """Writes every tensor that differs from the base weights, one file a part, and records the hashes.

    Adapters are written in peft's format; what else trained in their part, or an earlier stage changed in it, stands
    beside them.
    """
    entries = []
    for name, module in parts.items():
        names = set(changed.get(name, set()))
        names |= _trained(module) - _adapter(module)
        if names:
            entries.append(_save_tensors(module, names, name, run))
        if has_adapter(module):
            folder = run.weights / f"{name}_lora"
            save_adapter(module, folder)
            files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
            entries.append({"part": name, "kind": "lora", "files": _hashes(files, run)})
    run.update_manifest(weights=entries)


def _save_tensors(module: nn.Module, names: set[str], part: str, run: RunDir) -> dict[str, Any]:
    state = module.state_dict()
    plain = {name.replace(".base_layer.", "."): name for name in state}
    kept = getattr(module, "originals", {})  # of an LLM that is stored in few bits
    held = {name: kept[name] if name in kept else state[plain.get(name, name)] for name in sorted(names)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in held.items()}
    require_space(run.weights, sum(t.numel() * t.element_size() for t in tensors.values()))
    file = run.weights / f"{part}.safetensors"
    with writing(file) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    return {"part": part, "kind": "full", "files": _hashes([file], run)}


def _load_tensors(module: nn.Module, file: Path, part: str) -> set[str]:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(str(error), where=str(file)) from error
    own = module.state_dict()
    pattern = getattr(module, "leaves_behind", None)
    left = [name for name in tensors if pattern and name not in own and re.fullmatch(pattern, name)]
    if left:
        log.info("%s: %d of %d tensors stay behind: %s", part, len(left), len(tensors), ", ".join(left))
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left}
    problems = [f"no {name} here" for name in tensors if name not in own]
    problems += [
        f"{name} is {tuple(tensor.shape)}, here {tuple(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if problems:
        raise CheckpointError(
            f"{len(problems)} tensors do not fit: {'; '.join(problems[:4])}",
            expected=f"a {part} of this encoder-LLM pair, with the same new tokens",
            where=str(file),
            fix=f"use encoder, connector, llm and template of that run, or stage.init_from=<a run with this {part}>",
        )
    module.load_state_dict(tensors, strict=False)
    return set(tensors)


def _trained(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def _adapter(module: nn.Module) -> set[str]:
    """What an adapter folder holds of it; besides, an adapted part may train the rows of new tokens."""
    return {name for name, _ in module.named_parameters() if ".lora_" in name}


def _hashes(files: list[Path], run: RunDir) -> dict[str, str]:
    return {str(file.relative_to(run.path)): sha256(file) for file in files}
