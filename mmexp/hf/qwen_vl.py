"""Qwen-VL's `visual.*` as the start of a stage: its vision transformer in open_clip's layout, and the resampler.

Source: `visual.py` as published with Qwen/Qwen-VL. The LLM is no class of transformers and is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmexp.errors import CheckpointError
from mmexp.hf.base import State
from mmexp.hf.foreign import Group, Placement

if TYPE_CHECKING:
    from torch import Tensor, nn

_ENCODER = re.compile(
    r"conv1\.weight|positional_embedding|ln_pre\.(?:weight|bias)"
    r"|transformer\.resblocks\.\d+\.(?:ln_[12]|attn\.out_proj|mlp\.c_fc|mlp\.c_proj)\.(?:weight|bias)"
)
_IN_PROJ = re.compile(r"(transformer\.resblocks\.\d+\.attn\.in_proj)\.(weight|bias)")


def is_qwen_vl(state: Mapping[str, Any]) -> bool:
    """Whether the names are those of Qwen-VL."""
    return any(name.startswith("transformer.visual.") for name in state)


def qwen_vl_names(name: str) -> tuple[str, str] | None:
    """Part and own name of one tensor below `transformer.visual.`; None for the LLM's."""
    if not name.startswith("transformer.visual."):
        return None
    rest = name.removeprefix("transformer.visual.")
    if found := _IN_PROJ.fullmatch(rest):
        return "encoder", f"visual.{found[1]}_{found[2]}"
    if _ENCODER.fullmatch(rest):
        return "encoder", f"visual.{rest}"
    if rest.startswith("attn_pool."):
        return "connector", rest.removeprefix("attn_pool.")
    return ("connector", rest) if rest.startswith("ln_post.") or rest == "proj" else None


def by_projection(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows that Qwen-VL orders by head (query, key and value of each) as all queries, then keys, then values."""
    heads = tensor.unflatten(0, (num_heads, 3, -1))
    return heads.transpose(0, 1).flatten(0, 2).contiguous()


def place_qwen_vl(state: State, parts: Mapping[str, nn.Module], where: str) -> Placement:
    """Groups for the encoder and the resampler.

    Raises:
        CheckpointError: the encoder is none of open_clip, or a tensor of `visual.*` has no place.
    """
    encoder: Any = parts.get("encoder")
    blocks = getattr(getattr(getattr(encoder, "visual", None), "transformer", None), "resblocks", None)
    if blocks is None:
        raise CheckpointError(f"{type(encoder).__name__}", expected="a vision transformer of open_clip", where=where,
                              fix="encoder=openclip_bigg connector=resampler")  # fmt: skip
    num_heads = blocks[0].attn.num_heads
    groups: dict[str, State] = {"encoder": {}, "connector": {}}
    placement = Placement()
    for name, tensor in state.items():
        found = qwen_vl_names(name)
        if found is None and name.startswith("transformer.visual."):
            raise CheckpointError(f"{name} has no place here", where=where)
        if found is None:
            placement.unused.append(name)
        else:
            is_joint = found[1].endswith(("in_proj_weight", "in_proj_bias")) and found[0] == "encoder"
            groups[found[0]][found[1]] = by_projection(tensor, num_heads) if is_joint else tensor
    placement.groups = [Group(part=part, prefix="", state=tensors) for part, tensors in groups.items() if tensors]
    return placement
