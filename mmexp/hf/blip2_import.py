"""BLIP-2's weights as the start of a stage: LAVIS and MiniGPT-4 files, and folders of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmexp.errors import CheckpointError
from mmexp.hf.base import State
from mmexp.hf.blip2 import LLMS, TEXT_OF_QFORMER, hf_to_lavis, kind_of
from mmexp.hf.foreign import Group, Placement

if TYPE_CHECKING:
    from torch import nn

_HEADS = ("vision_proj.", "text_proj.", "itm_head.", "temp")
_BUFFERS = re.compile(
    r"(Qformer\.bert\.embeddings\.position_ids|.*rotary_emb\.inv_freq|.*\.relative_position_index"
    r"|Qformer\.cls\.predictions\.decoder\.(weight|bias)|Qformer\.bert\.pooler\..*)"
)
"""What files hold besides parameters, and second names of tied ones."""
_PROJ = re.compile(rf"({'|'.join(LLMS)})_proj\.(.+)")
_LLM = re.compile(rf"({'|'.join(LLMS)})_model\.(.+)")


def is_blip2(state: Mapping[str, Any]) -> bool:
    """Whether the names are those of LAVIS, MiniGPT-4, or one of transformers' BLIP-2 classes."""
    return kind_of(state) is not None or any(
        name == "query_tokens" or name.startswith(("Qformer.", "visual_encoder.", "ln_vision.")) or _PROJ.match(name)
        for name in state
    )


def place_blip2(state: State, parts: Mapping[str, nn.Module], where: str) -> Placement:
    """Groups: vision transformer, `ln_vision`, Q-Former, projection, heads and LLM, each as far as it is there.

    Raises:
        CheckpointError: there are LoRA weights of an LLM, whose scale the file does not tell.
    """
    kind = kind_of(state)
    lavis = state if kind is None else hf_to_lavis(state, kind)
    lora = [name for name in lavis if ".lora_" in name]
    if lora:
        raise CheckpointError(f"{len(lora)} LoRA tensors: {lora[0]}", expected="weights without adapters", where=where,
                              fix="fold them into the LLM with peft, and load the projection alone")  # fmt: skip
    connector = set(parts["connector"].state_dict()) if "connector" in parts else set()
    groups: dict[tuple[str, str], State] = {}
    placement = Placement()
    for name, tensor in lavis.items():
        found = None if _BUFFERS.fullmatch(name) else _place(name, connector, "objective" in parts)
        if found is None:
            placement.unused.append(name)
        else:
            part, prefix, own = found
            groups.setdefault((part, prefix), {})[own] = tensor
    for (part, prefix), tensors in groups.items():
        optional = frozenset(name for name in tensors if TEXT_OF_QFORMER.fullmatch(name) and name not in connector)
        placement.groups.append(Group(part=part, prefix=prefix, state=tensors, optional=optional))
    return placement


def _place(name: str, connector: set[str], has_heads: bool) -> tuple[str, str, str] | None:
    """Part, subtree and own name."""
    if name.startswith("visual_encoder."):
        return "encoder", "vit.", f"vit.{name.removeprefix('visual_encoder.')}"
    if name.startswith("ln_vision."):
        return "encoder", "ln_vision.", name
    if name == "query_tokens" or name.startswith("Qformer."):
        return "connector", "qformer.", f"qformer.{name.removeprefix('Qformer.')}"
    if name.startswith(_HEADS):
        head = next(head for head in _HEADS if name.startswith(head))
        return ("objective", head, name) if has_heads else None
    if found := _PROJ.fullmatch(name):
        if f"proj.{found[2]}" in connector:
            return "connector", "proj.", f"proj.{found[2]}"
        return ("connector", "0.", f"0.{found[2]}") if f"0.{found[2]}" in connector else None
    found = _LLM.fullmatch(name)
    return ("llm", "model.", f"model.{found[2]}") if found else None
