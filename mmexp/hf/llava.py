"""LLaVA in transformers: which plans its class can hold, its config, and the names of its tensors.

Source: transformers 5.23 `models/llava` and `conversion_mapping.py`; the names on disk are those that every version of
transformers, and the servers that read them, load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from mmexp.connector import IdentityConfig, MlpConfig
from mmexp.encoder.hf_vision import repeated_blocks
from mmexp.errors import CheckpointError, ConfigError
from mmexp.hf.base import State, common_dtype, grow, plain_config, rename, require_equal_names
from mmexp.hf.form import refusal

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import LlavaConfig

    from mmexp.model import MultimodalModel, Plan

CLASS = "LlavaForConditionalGeneration"
_PREFIXED = ("clip_vision_model", "siglip_vision_model")
"""Encoders whose published files have a level `vision_model`."""
_SCALED = ("logits_scaling", "logit_scale", "final_logit_softcapping")
"""Settings of an LLM that change its logits; the LLaVA class does not read them."""


def refusals(plan: Plan) -> list[ConfigError]:
    """Why transformers' LLaVA class cannot hold this model, part by part; empty when it can. Reads no weight."""
    found: list[ConfigError] = []
    if set(plan.inputs) != {"image"}:
        return [_no(f"inputs {', '.join(plan.inputs) or 'none'}", "one image branch", "encoder")]
    branch = plan.inputs["image"]
    if not hasattr(branch.encoder, "whole"):
        found.append(_no(type(branch.encoder).__name__, "a CLIP, SigLIP or DINOv2 encoder of transformers", "encoder"))
    if isinstance(branch.connector, MlpConfig) and branch.connector.depth > 2:
        found.append(_no(f"{branch.connector.depth} layers", "at most two", "connector.depth"))
    elif not isinstance(branch.connector, (MlpConfig, IdentityConfig)):
        found.append(_no(type(branch.connector).__name__, "linear, mlp2x or identity", "connector"))
    if plan.tiling is not None:
        found.append(_no(f"{plan.tiling}", "one view of a picture", "processor.image_fit"))
    return found or _llm_refusals(plan)


def _llm_refusals(plan: Plan) -> list[ConfigError]:
    with torch.device("meta"):
        llm: Any = plan.llm.empty()
    if not hasattr(llm, "model") or not hasattr(llm.model, "get_output_embeddings"):
        return [_no(type(plan.llm).__name__, "a causal LLM of transformers", "llm")]
    found = [_no(f"{name} is set", "plain logits", "llm") for name in _SCALED if getattr(llm.model.config, name, None)]
    if getattr(llm.model.get_output_embeddings(), "bias", None) is not None:
        found.append(_no("an output head with bias", "one without", "llm"))
    return found


def _no(found: str, expected: str, where: str) -> ConfigError:
    return refusal(CLASS, found, expected, where)


def llava_config(plan: Plan, model: MultimodalModel, image_token_id: int) -> LlavaConfig:
    """The config with every field that follows from the plan and the built parts."""
    from transformers import LlavaConfig

    encoder, llm = _image_encoder(model), model.llm.model
    vision, text = plain_config(encoder.model.config), plain_config(llm.config)
    if vision["model_type"] == "siglip_vision_model":
        vision["vision_use_head"] = False
    rows = max(text["vocab_size"], image_token_id + 1)
    dtype = str(common_dtype(model.parameters())).removeprefix("torch.")
    text |= {"vocab_size": rows, "architectures": [type(llm).__name__], "dtype": dtype}
    vision |= {"architectures": [type(encoder.model).__name__], "dtype": dtype}
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=plan.inputs["image"].num_soft_tokens,
        projector_hidden_act="gelu" if _depth(plan) == 2 else "linear",
        vision_feature_select_strategy=feature_strategy(encoder),
        vision_feature_layer=len(repeated_blocks(encoder.model)) - (encoder.model.config.num_hidden_layers + 1),
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
        architectures=[CLASS],
        dtype=dtype,
    )


def feature_strategy(encoder: Any) -> Literal["default", "full"]:
    """`default` drops the first position of the features, `full` keeps all."""
    return "default" if encoder.drop else "full"


def llava_state(plan: Plan, model: MultimodalModel, num_rows: int) -> State:
    """The tensors of a LLaVA checkpoint.

    Args:
        plan: Whose model it is.
        model: Its weights, adapters folded in.
        num_rows: Rows of the embedding table, the placeholder's included.

    Raises:
        CheckpointError: a tensor of the model has no place there.
    """
    state = encoder_state(_image_encoder(model), plan.inputs["image"].encoder)
    branch: Any = model.inputs["image"]
    state |= connector_state(branch.connector.state_dict(), plan.spec.width)
    return state | llm_state(model.llm.model, num_rows)


def encoder_state(encoder: Any, config: Any) -> State:
    """`vision_tower.*`, with the blocks behind the selected layer as in the base checkpoint (nobody reads them)."""
    own = encoder.model.state_dict()
    whole = config.whole().state_dict()
    lost = sorted(own.keys() - whole.keys())
    if lost:
        raise CheckpointError(f"the base encoder lacks {', '.join(lost[:4])}", where="encoder")
    level = "vision_model." if encoder.model.config.model_type in _PREFIXED else ""
    kept = {name: tensor for name, tensor in (whole | own).items() if not name.startswith("head.")}
    return rename(kept, lambda name: f"vision_tower.{level}{name}", "encoder")


def connector_state(own: dict[str, Tensor], width: int) -> State:
    """`multi_modal_projector.*`. The class always has two layers: where a connector has one or none, the others are
    the identity, which changes no bit of what goes through it."""
    layers = {"0": "linear_1", "2": "linear_2"}
    state = rename(own, lambda name: _renamed_layer(name, layers), "connector") if own else {}
    for layer in layers.values():
        if f"multi_modal_projector.{layer}.weight" not in state:
            like = next(iter(state.values()), torch.zeros(()))
            state[f"multi_modal_projector.{layer}.weight"] = torch.eye(width, dtype=like.dtype)
            state[f"multi_modal_projector.{layer}.bias"] = torch.zeros(width, dtype=like.dtype)
    return state


def llm_state(llm: Any, num_rows: int) -> State:
    """`language_model.model.*`, and `language_model.lm_head.weight` unless it is the embedding table itself."""
    tables = {_name_of(llm, llm.get_input_embeddings()), _name_of(llm, llm.get_output_embeddings())}
    head = _name_of(llm, llm.get_output_embeddings())
    tied = llm.get_output_embeddings().weight is llm.get_input_embeddings().weight
    prefix = f"{llm.base_model_prefix}."
    state: State = {}
    for name, tensor in llm.state_dict().items():
        if name == f"{head}.weight" and tied:
            continue
        state[name] = grow(tensor, num_rows) if name.removesuffix(".weight") in tables else tensor

    def rule(name: str) -> str | None:
        if name == f"{head}.weight":
            return "language_model.lm_head.weight"
        return f"language_model.model.{name.removeprefix(prefix)}" if name.startswith(prefix) else None

    return rename(state, rule, "llm")


def require_complete(state: State, config: LlavaConfig) -> None:
    """Raises CheckpointError unless the tensors are exactly those of transformers' class with this config."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        names = set(LlavaForConditionalGeneration(config).state_dict())
    if config.tie_word_embeddings:
        names.discard("lm_head.weight")
    require_equal_names(map(runtime_name, state), names, CLASS)


def runtime_name(name: str) -> str:
    """From the name on disk to the name in the built class."""
    name = name.replace("vision_tower.vision_model.", "vision_tower.", 1)
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.", 1)


def _image_encoder(model: MultimodalModel) -> Any:
    return model.inputs["image"].encoder


def _depth(plan: Plan) -> int:
    return getattr(plan.inputs["image"].connector, "depth", 0)


def _renamed_layer(name: str, layers: dict[str, str]) -> str | None:
    layer, _, leaf = name.partition(".")
    return f"multi_modal_projector.{layers[layer]}.{leaf}" if layer in layers else None


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)
