"""Names of BLIP-2's vision transformer in transformers and in LAVIS, as pure functions.

Source: salesforce/LAVIS @ 506965b lavis/models/eva_vit.py; transformers 5.23 `models/blip_2` and its conversion script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mmexp.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Names = Sequence[tuple[str, str]]
"""Rows of the beginning of a name here and there, the more special first; `{i}` is the number of a block."""
VISION: Names = (
    ("ln_vision.", "vision_model.post_layernorm."),
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.blocks.{i}.norm1.", "vision_model.encoder.layers.{i}.layer_norm1."),
    ("visual_encoder.blocks.{i}.norm2.", "vision_model.encoder.layers.{i}.layer_norm2."),
    ("visual_encoder.blocks.{i}.attn.qkv.", "vision_model.encoder.layers.{i}.self_attn.qkv."),
    ("visual_encoder.blocks.{i}.attn.proj.", "vision_model.encoder.layers.{i}.self_attn.projection."),
    ("visual_encoder.blocks.{i}.mlp.", "vision_model.encoder.layers.{i}.mlp."),
)
PREFIX = "vision_model."
"""Of the names in transformers."""


def renamed(name: str, table: Names) -> str | None:
    """The name on the other side; None where it has none."""
    for before, after in table:
        found = re.match(re.escape(before).replace(r"\{i\}", r"(\d+)"), name)
        if found:
            number = found[1] if found.groups() else ""
            return after.replace("{i}", number) + name[found.end() :]
    return None


def split_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joint biases of queries, keys and values as LAVIS has them, under LAVIS's names: no bias of keys.

    Raises:
        CheckpointError: keys have a bias, for which LAVIS has no parameter.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not re.fullmatch(r"visual_encoder\.blocks\.\d+\.attn\.qkv\.bias", name):
            result[name] = tensor
            continue
        query, key, value = tensor.chunk(3)
        if key.any():
            raise CheckpointError(f"{name}: the middle third, the bias of keys, is not zero", where="import",
                                  expected="zeros: EVA's keys have no bias")  # fmt: skip
        prefix = name.removesuffix("qkv.bias")
        result |= {f"{prefix}q_bias": query.clone(), f"{prefix}v_bias": value.clone()}
    return result


def vision_from_transformers(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors `vision_model.*` of a BLIP-2 checkpoint under LAVIS's names; others are left out.

    Raises:
        CheckpointError: one of them has no place in LAVIS.
    """
    table = [(theirs, ours) for ours, theirs in VISION]
    found = {name: renamed(name, table) for name in state if name.startswith(PREFIX)}
    lost = [name for name, ours in found.items() if ours is None]
    if lost:
        raise CheckpointError(f"{', '.join(lost[:4])}", expected="the vision model of a BLIP-2 checkpoint", where=where)
    return split_biases({ours: state[name] for name, ours in found.items() if ours is not None})
