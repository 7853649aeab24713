"""LLaVA's weights as starting point: transformers folders, original checkpoints, and `mm_projector.bin`.

Source: haotian-liu/LLaVA @ c121f04 `llava/model/builder.py`, `llava/model/llava_arch.py`; transformers 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from mmexp.encoder.hf_vision import repeated_blocks
from mmexp.errors import CheckpointError
from mmexp.hf.base import State
from mmexp.hf.foreign import Group, Placement

if TYPE_CHECKING:
    from torch import nn

_SAME = ("model_type", "hidden_act", "rms_norm_eps", "layer_norm_eps", "num_attention_heads", "num_key_value_heads",
         "rope_parameters", "head_dim")  # fmt: skip
"""Settings that no tensor shows."""


def is_llava(state: Mapping[str, Any]) -> bool:
    """Whether the names are those of a LLaVA checkpoint, of transformers or original."""
    return any("multi_modal_projector." in name or "mm_projector." in name for name in state)


def llava_names(name: str) -> tuple[str, str] | None:
    """Part and rest of one name: `encoder`, `connector` (layer `0` or `2` first), `llm` or `head`."""
    name = re.sub(r"^base_model\.(model\.)?", "", name)  # a LoRA run's non_lora_trainables.bin
    name = re.sub(r"^model\.(?=language_model\.|multi_modal_projector\.|vision_tower\.(?!vision_tower))", "", name)
    rules = (
        (r"(?:model\.)?(?:model\.)?mm_projector\.(?:(\d+)\.)?(weight|bias)", "connector"),
        (r"multi_modal_projector\.linear_([12])\.(weight|bias)", "linear"),
        (r"(?:model\.)?(?:model\.)?image_newline", "newline"),
        (r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?(.+)", "encoder"),
        (r"vision_tower\.(?:vision_model\.)?(.+)", "encoder"),
        (r"(?:language_model\.)?lm_head\.(.+)", "head"),
        (r"language_model\.(?:model\.)?(.+)", "llm"),
        (r"model\.(.+)", "llm"),
    )
    for pattern, part in rules:
        found = re.fullmatch(pattern, name)
        if found and part == "linear":
            return "connector", f"{2 * (int(found[1]) - 1)}.{found[2]}"
        if found and part == "connector":
            return "connector", f"{found[1] or 0}.{found[2]}"
        if found:
            return ("connector", "newline") if part == "newline" else (part, found[1])
    return None


def place_llava(state: State, config: Mapping[str, Any], parts: Mapping[str, nn.Module], where: str) -> Placement:
    """Groups for encoder, connector and LLM, as far as the checkpoint has them.

    Raises:
        CheckpointError: the config tells of a model that computes something else with these tensors.
    """
    encoder, connector, llm = (parts.get(name) for name in ("encoder", "connector", "llm"))
    if config.get("model_type") == "llava" and "text_config" in config:
        _check_config(config, encoder, llm, where)
    sorted_states: dict[str, State] = {"encoder": {}, "connector": {}, "llm": {}}
    placement = Placement()
    for name, tensor in state.items():
        found = llava_names(name)
        if found is None or name.endswith("rotary_emb.inv_freq") or "position_ids" in name:
            placement.unused.append(name)
        elif found[0] in ("llm", "head"):
            prefix = (
                f"{getattr(getattr(llm, 'model', None), 'base_model_prefix', 'model')}." if found[0] == "llm" else ""
            )
            sorted_states["llm"][f"model.{prefix}{found[1]}" if prefix else f"model.lm_head.{found[1]}"] = tensor
        else:
            own = f"model.{found[1]}" if found[0] == "encoder" else found[1]
            sorted_states[found[0]][own] = tensor
    sorted_states["connector"] = _without_identity(sorted_states["connector"], connector, placement)
    for part, own_state in sorted_states.items():
        if own_state:
            optional = _behind(own_state, encoder) if part == "encoder" else frozenset()
            placement.groups.append(Group(part=part, prefix="", state=own_state, optional=optional))
    return placement


def _behind(state: State, encoder: Any) -> frozenset[str]:
    """Names of blocks behind the selected layer, and of a pooling head: nobody reads them."""
    kept = len(repeated_blocks(encoder.model)) if encoder is not None else 0
    numbers = {name: re.search(r"\.layers?\.(\d+)\.", name) for name in state}
    return frozenset(
        name
        for name, found in numbers.items()
        if (found and int(found[1]) >= kept) or name.startswith(("model.head.", "model.pooler."))
    )


def _without_identity(state: State, connector: Any, placement: Placement) -> State:
    """The connector's tensors; a second layer that is the identity is left out where the connector has one layer."""
    own = set(connector.state_dict()) if connector is not None else set()
    second = state.get("2.weight")
    if second is None or "2.weight" in own or "0.weight" not in own:
        return state
    is_identity = second.shape[0] == second.shape[1] and torch.equal(second.float(), torch.eye(second.shape[0]))
    if is_identity and not state["2.bias"].any():
        placement.unused += ["connector 2.weight, the identity", "connector 2.bias, zeros"]
        return {name: tensor for name, tensor in state.items() if not name.startswith("2.")}
    return state


def _check_config(config: Mapping[str, Any], encoder: Any, llm: Any, where: str) -> None:
    """Compares what tensors do not show: the selected layer, activations, epsilons, heads and positions."""
    from transformers import LlavaConfig

    theirs = LlavaConfig(**{key: value for key, value in config.items() if key != "model_type"})
    wrong = []
    if encoder is not None:
        blocks = encoder.model.config.num_hidden_layers
        layer = theirs.vision_feature_layer
        if not isinstance(layer, int) or layer % (blocks + 1) != len(repeated_blocks(encoder.model)):
            wrong.append(f"vision_feature_layer {layer} (encoder.select_layer)")
        strategy = "default" if encoder.drop else "full"
        if theirs.vision_feature_select_strategy != strategy:
            wrong.append(f"vision_feature_select_strategy {theirs.vision_feature_select_strategy}, here {strategy}")
        wrong += _differences(theirs.vision_config, encoder.model.config, "vision_config")
    if llm is not None and hasattr(llm, "model"):
        wrong += _differences(theirs.text_config, llm.model.config, "text_config")
    if theirs.projector_hidden_act not in ("gelu", "linear"):
        wrong.append(f"projector_hidden_act {theirs.projector_hidden_act}, here gelu")
    if wrong:
        raise CheckpointError("; ".join(wrong), expected="a model that computes the same", where=where,
                              fix="choose the encoder and llm that belong to it")  # fmt: skip


def _differences(theirs: Any, ours: Any, name: str) -> list[str]:
    pairs = {key: (getattr(theirs, key, None), getattr(ours, key, None)) for key in _SAME}
    return [f"{name}.{key} {there}, here {here}" for key, (there, here) in pairs.items() if there != here]
