"""Checkpoints in the real formats at a small size, and plans around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmexp.connector import MlpConfig
from mmexp.encoder import HfVisionConfig
from mmexp.llm import CausalConfig, TinyLlmConfig
from mmexp.model import InputPlan, Plan
from mmexp.prompt import ChatTemplate

SIDE = 28


def vision(folder: Path, family: str) -> Path:
    """A vision checkpoint of two blocks: clip, siglip or dinov2."""
    import transformers as t

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 7}
    torch.manual_seed(1)
    if family == "clip":
        model: Any = t.CLIPVisionModel(t.CLIPVisionConfig(**sizes, intermediate_size=64, hidden_act="quick_gelu"))
    elif family == "siglip":
        model = t.SiglipVisionModel(t.SiglipVisionConfig(**sizes, intermediate_size=64))
    else:
        model = t.Dinov2Model(t.Dinov2Config(**sizes, mlp_ratio=2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def language(folder: Path, **changes: Any) -> Path:
    """A Llama checkpoint of two blocks with a byte tokenizer."""
    import transformers as t

    torch.manual_seed(2)
    config: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 259}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0}
    model = t.LlamaForCausalLM(t.LlamaConfig(**(config | changes), initializer_range=0.3))
    model.save_pretrained(folder)
    TinyLlmConfig().load_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every small checkpoint by name."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {family: vision(root / family, family) for family in ("clip", "siglip", "dinov2")}
    made["llama"] = language(root / "llama")
    made["llama_tied"] = language(root / "llama_tied", tie_word_embeddings=True)
    made["llama_padded"] = language(root / "llama_padded", vocab_size=264)
    return made


@pytest.fixture(scope="session")
def make_plan(folders: dict[str, Path]) -> Callable[..., Plan]:
    """A LLaVA-like plan; keyword arguments change it."""

    def make(encoder: str = "clip", llm: str = "llama", connector: Any = None, **changes: Any) -> Plan:
        template = changes.pop("template", ChatTemplate(name="short", media="first_if_single"))
        vision_config = HfVisionConfig(path=str(folders[encoder]), **changes.pop("encoder_settings", {}))
        return Plan(
            inputs={"image": InputPlan(encoder=vision_config, connector=connector or MlpConfig())},
            llm=changes.pop("llm_config", CausalConfig(path=str(folders[llm]))),
            template=template,
            max_length_tokens=256,
            **changes,
        )

    return make
