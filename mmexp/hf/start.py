"""One door for every foreign checkpoint: the names of its tensors tell what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmexp.errors import CheckpointError
from mmexp.hf.blip2_import import is_blip2, place_blip2
from mmexp.hf.foreign import place, read_config, read_state
from mmexp.hf.llava_import import is_llava, place_llava
from mmexp.hf.qwen_vl import is_qwen_vl, place_qwen_vl

if TYPE_CHECKING:
    from torch import nn


def load_foreign(parts: Mapping[str, nn.Module], path: Path) -> dict[str, set[str]]:
    """Puts a checkpoint of another program into `parts`.

    Returns:
        Per part the names that were set, so that the run hands them on.

    Raises:
        CheckpointError: it cannot be read, is of no known kind, or belongs to another model.
    """
    state, config, where = read_state(path), read_config(path), str(path)
    if is_llava(state):
        return place(parts, place_llava(state, config, parts, where), where)
    if is_qwen_vl(state):
        return place(parts, place_qwen_vl(state, parts, where), where)
    if is_blip2(state):
        return place(parts, place_blip2(state, parts, where), where)
    some = ", ".join(sorted(state)[:4]) or "nothing"
    raise CheckpointError(
        f"tensors of no known kind: {some}",
        expected="LLaVA (transformers, original, mm_projector.bin), LAVIS, MiniGPT-4, BLIP-2 or Qwen-VL",
        where=where,
    )
