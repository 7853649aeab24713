"""Names of BLIP-2, InstructBLIP and their ITM model: LAVIS, transformers, and this package, as pure functions.

LAVIS is the middle: our names are LAVIS's below other prefixes, so every way goes through it.
Source: salesforce/LAVIS @ 506965b; transformers 5.23 `models/blip_2`, `models/instructblip`, conversion scripts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch

from mmexp.encoder.blip2_names import VISION, renamed, split_biases
from mmexp.errors import CheckpointError
from mmexp.hf.base import State, rename

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["generation", "retrieval", "instruct"]
"""`Blip2ForConditionalGeneration`, `Blip2ForImageTextRetrieval`, `InstructBlipForConditionalGeneration`."""

_QFORMER = (
    ("query_tokens", "query_tokens"),
    ("Qformer.bert.encoder.layer.{i}.attention.self.", "qformer.encoder.layer.{i}.attention.attention."),
    ("Qformer.bert.encoder.layer.{i}.crossattention.self.", "qformer.encoder.layer.{i}.crossattention.attention."),
    ("Qformer.bert.encoder.layer.{i}.", "qformer.encoder.layer.{i}."),
)
_TEXT = {"word": "Qformer.bert.embeddings.word_embeddings.", "position": "Qformer.bert.embeddings.position_embeddings."}
_OF_KIND: dict[str, tuple[tuple[str, str], ...]] = {
    "generation": (("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),),
    "retrieval": (
        ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
        (_TEXT["word"], "embeddings.word_embeddings."),
        (_TEXT["position"], "embeddings.position_embeddings."),
        ("vision_proj.", "vision_projection."),
        ("text_proj.", "text_projection."),
        ("itm_head.", "itm_head."),
    ),
    "instruct": (
        ("Qformer.bert.embeddings.LayerNorm.", "qformer.embeddings.layernorm."),
        (_TEXT["word"], "qformer.embeddings.word_embeddings."),
        (_TEXT["position"], "qformer.embeddings.position_embeddings."),
    ),
}
LLMS = ("opt", "t5", "llm", "glm", "llama")
"""How LAVIS and its relatives begin the names of a projection (`opt_proj`) and an LLM (`opt_model`)."""
TEXT_OF_QFORMER = re.compile(
    r"qformer\.(cls\..*|bert\.embeddings\.(word|position)_embeddings\..*"
    r"|bert\.encoder\.layer\.\d+\.(intermediate|output)\..*)"
)
"""What a Q-Former without text does not have."""
_BIAS = re.compile(r"(visual_encoder\.blocks\.\d+\.attn\.)(q|v)_bias")


def lavis_to_hf(state: Mapping[str, Tensor], kind: Kind) -> State:
    """A LAVIS state dict under the names of a class of transformers, biases of queries and values joined.

    Raises:
        CheckpointError: a tensor has no place in that class (heads that it lacks, a text path).
    """
    table = _table(kind, None)
    joined: State = {}
    for name, tensor in state.items():
        found = _BIAS.fullmatch(name)
        if found is None:
            joined[name] = tensor
        elif found[2] == "q":
            value = state.get(f"{found[1]}v_bias")
            if value is None:
                raise CheckpointError(f"{name} without its v_bias", where="LAVIS checkpoint")
            joined[f"{found[1]}qkv.bias"] = torch.cat([tensor, torch.zeros_like(tensor), value])
    return rename(joined, lambda name: renamed(name, table), f"LAVIS to transformers ({kind})")


def hf_to_lavis(state: Mapping[str, Tensor], kind: Kind, llm: str = "opt") -> State:
    """The way back; `llm` is what the LLM's names begin with there.

    Raises:
        CheckpointError: a tensor has no place there, or keys have a bias, for which LAVIS has no parameter.
    """
    table = [(theirs, ours) for ours, theirs in _table(kind, llm)]
    return split_biases(rename(state, lambda name: renamed(name, table), f"transformers ({kind}) to LAVIS"))


def ours_to_lavis(parts: Mapping[str, Mapping[str, Tensor]], llm: str = "opt") -> State:
    """State dicts of `encoder`, `connector`, `llm` and `objective` as one of LAVIS."""
    state: State = {}
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            state[_ours(part, name, llm)] = tensor
    return state


def kind_of(names: Mapping[str, object]) -> Kind | None:
    """Which class of transformers a state dict is of; None for none of these."""
    if "query_tokens" not in names or not any(name.startswith("vision_model.") for name in names):
        return None
    if "itm_head.weight" in names:
        return "retrieval"
    return "instruct" if "qformer.embeddings.layernorm.weight" in names else "generation"


def _ours(part: str, name: str, llm: str) -> str:
    prefixes = {
        "encoder": (("vit.", "visual_encoder."), ("ln_vision.", "ln_vision.")),
        "connector": (("qformer.query_tokens", "query_tokens"), ("qformer.", "Qformer."), ("proj.", f"{llm}_proj.")),
        "llm": (("model.", f"{llm}_model."),),
        "objective": (("", ""),),
    }
    for ours, theirs in prefixes.get(part, ()):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise CheckpointError(f"{part} {name} has no place in LAVIS", where="export")


def _table(kind: Kind, llm: str | None) -> list[tuple[str, str]]:
    """Rows of LAVIS name and transformers name, the more special first; of one LLM or of all."""
    rows = [*VISION, *_OF_KIND[kind], *_QFORMER]
    if kind != "retrieval":
        names = LLMS if llm is None else (llm,)
        rows += [(f"{name}_proj.", "language_projection.") for name in names]
        rows += [(f"{name}_model.", "language_model.") for name in names]
    return rows
