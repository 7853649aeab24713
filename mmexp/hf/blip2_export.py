"""BLIP-2 and InstructBLIP in transformers: which plans their classes can hold, their configs, and their tensors.

Source: transformers 5.23 `models/blip_2`, `models/instructblip`; names on disk are those of every version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmexp.connector import QformerConfig
from mmexp.encoder import LavisVisionConfig
from mmexp.errors import ConfigError
from mmexp.hf.base import State, common_dtype, grow, plain_config, require_equal_names
from mmexp.hf.blip2 import TEXT_OF_QFORMER, lavis_to_hf, ours_to_lavis
from mmexp.hf.form import refusal

if TYPE_CHECKING:
    from transformers import Blip2Config, InstructBlipConfig

    from mmexp.model import MultimodalModel, Plan

CLASS = "Blip2ForConditionalGeneration"
INSTRUCT_CLASS = "InstructBlipForConditionalGeneration"
"""Of a Q-Former that reads the instruction."""
NORM_EPS = 1e-6
"""Of every norm of the class's vision model; ours has 1e-5 in the one behind the blocks."""
NORM_NOTE = (
    f"The norm behind the vision transformer adds {NORM_EPS:g} to a variance here, and 1e-5 where it was trained, as"
    " for every BLIP-2 in transformers."
)
"""For model cards."""


def class_of(plan: Plan) -> str:
    """Which of the two classes a model with an LLM becomes."""
    image = plan.inputs.get("image")
    return INSTRUCT_CLASS if image and image.instruction else CLASS


def vision_refusals(plan: Plan, cls: str) -> list[ConfigError]:
    """Why a class with BLIP-2's vision model and Q-Former cannot hold the image branch."""
    if set(plan.inputs) != {"image"}:
        return [refusal(cls, f"inputs {', '.join(plan.inputs) or 'none'}", "one image branch", "encoder")]
    encoder, connector = plan.inputs["image"].encoder, plan.inputs["image"].connector
    found = []
    if not isinstance(encoder, LavisVisionConfig):
        found.append(refusal(cls, f"{type(encoder).__name__}: no norm behind its blocks, or one in front of them",
                             "EVA's vision transformer: CLS, blocks with GELU, then ln_vision", "encoder"))  # fmt: skip
    elif encoder.family != "eva":
        found.append(refusal(cls, "CLIP's norm in front of the blocks (ln_pre)",
                             "EVA's vision transformer, which has none", "encoder.family"))  # fmt: skip
    elif encoder.select_feature != "cls_patch":
        found.append(refusal(cls, "features without CLS", "cls_patch", "encoder.select_feature"))
    if not isinstance(connector, QformerConfig):
        found.append(refusal(cls, type(connector).__name__, "a Q-Former", "connector"))
    if plan.tiling is not None:
        found.append(refusal(cls, f"{plan.tiling}", "one view of a picture", "processor.image_fit"))
    return found


def llm_refusals(plan: Plan) -> list[ConfigError]:
    """Why the class cannot hold the LLM. Reads no weight."""
    cls = class_of(plan)
    with torch.device("meta"):
        llm: Any = plan.llm.empty()
    if not hasattr(llm, "model") or not hasattr(llm.model, "get_output_embeddings"):
        return [refusal(cls, type(plan.llm).__name__, "an LLM of transformers", "llm")]
    found = []
    text = llm.model.config.get_text_config()
    if text.hidden_size != plan.spec.width:
        found.append(refusal(cls, f"embeddings {plan.spec.width} wide in front of layers {text.hidden_size} wide",
                             "one width", "llm"))  # fmt: skip
    if plan.new_ids:
        found.append(refusal(cls, f"{len(plan.new_ids)} tokens with rows of their own", "no template.new_tokens",
                             "template.new_tokens"))  # fmt: skip
    return found


def blip2_config(
    plan: Plan, model: MultimodalModel, image_token_id: int, stop_ids: tuple[int, ...]
) -> Blip2Config | InstructBlipConfig:
    """The config with every field that follows from the plan and the built parts.

    Its class hands the LLM its own defaults for generation, so what ends an answer stands in the LLM's config.
    """
    import transformers

    cls, llm = class_of(plan), model.llm.model
    text, dtype = plain_config(llm.config), str(common_dtype(model.parameters())).removeprefix("torch.")
    text |= {"vocab_size": max(text["vocab_size"], image_token_id + 1), "architectures": [type(llm).__name__]}
    text |= {"dtype": dtype, "eos_token_id": stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)}
    tied: dict[str, Any] = {"tie_word_embeddings": bool(text.get("tie_word_embeddings", False))}
    more = {"use_qformer_text_input": False} if cls == CLASS else {}
    return getattr(transformers, cls).config_class(
        **tied,
        vision_config=vision_config(plan),
        qformer_config=qformer_config(plan, **more),
        text_config=text,
        num_query_tokens=plan.inputs["image"].num_soft_tokens,
        image_token_index=image_token_id,
        architectures=[cls],
        dtype=dtype,
    )


def vision_config(plan: Plan) -> dict[str, Any]:
    """Fields of `Blip2VisionConfig`."""
    encoder: Any = plan.inputs["image"].encoder
    return {
        "hidden_size": encoder.width,
        "intermediate_size": encoder.mlp_width,
        "num_hidden_layers": encoder.num_blocks,
        "num_attention_heads": encoder.num_heads,
        "image_size": encoder.image_size_px,
        "patch_size": encoder.patch_size_px,
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "qkv_bias": True,
    }


def qformer_config(plan: Plan, **more: Any) -> dict[str, Any]:
    """Fields of `Blip2QFormerConfig` and `InstructBlipQFormerConfig`, and those that only one of them has."""
    connector: Any = plan.inputs["image"].connector
    return {
        "hidden_size": connector.width,
        "intermediate_size": connector.ffn_width,
        "num_hidden_layers": connector.num_layers,
        "num_attention_heads": connector.num_heads,
        "cross_attention_frequency": connector.cross_every,
        "encoder_hidden_size": plan.inputs["image"].spec.width,
        "vocab_size": connector.vocab_size,
        "max_position_embeddings": connector.max_text_tokens,
        "hidden_dropout_prob": connector.dropout,
        "attention_probs_dropout_prob": connector.dropout,
        **more,
    }


def blip2_state(model: MultimodalModel, num_rows: int, cls: str) -> State:
    """The tensors of a checkpoint of that class, each once: tied ones have one name. Where the queries run alone, the
    Q-Former's text is left out.

    Raises:
        CheckpointError: a tensor of the model has no place there.
    """
    parts = {name: dict(module.state_dict()) for name, module in model.parts().items()}
    if cls == CLASS:
        parts["connector"] = {k: v for k, v in parts["connector"].items() if not TEXT_OF_QFORMER.fullmatch(k)}
    llm = model.llm.model
    tied, tables = set(llm.all_tied_weights_keys), _tables(llm)
    parts["llm"] = {
        name: grow(tensor, num_rows) if name.removeprefix("model.") in tables else tensor
        for name, tensor in parts["llm"].items()
        if name.removeprefix("model.") not in tied
    }
    return lavis_to_hf(ours_to_lavis(parts), "generation" if cls == CLASS else "instruct")


def require_complete(state: State, config: Any, cls: str) -> None:
    """Raises CheckpointError unless the tensors are exactly those of transformers' class with this config."""
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, cls)(config)
    require_equal_names(state, set(model.state_dict()) - set(model.all_tied_weights_keys), cls)


def _tables(llm: Any) -> set[str]:
    """Names of the tensors with a row for each token."""
    modules = {id(llm.get_input_embeddings()), id(llm.get_output_embeddings())}
    names = {name for name, module in llm.named_modules(remove_duplicate=False) if id(module) in modules}
    return {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}
