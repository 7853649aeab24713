"""Frozen matrices in bfloat16: bit-equal under autocast, and nothing that is handed on loses precision."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from mmexp.llm import TinyLlmConfig
from mmexp.llm.causal import empty_llm
from mmexp.tuning import LoraSettings, store_frozen
from mmexp.tuning.lora import add_lora
from tests.llm.test_causal import SMALL


def dtypes(module: nn.Module) -> dict[torch.dtype, set[str]]:
    found: dict[torch.dtype, set[str]] = {}
    for name, weight in module.named_parameters():
        found.setdefault(weight.dtype, set()).add(name.split(".")[-2])
    return found


def test_only_frozen_matrices_change_and_autocast_sees_no_difference() -> None:
    llm = TinyLlmConfig().build()
    llm.requires_grad_(False)
    llm.model.model.layers[1].mlp.requires_grad_(True)
    embeds = torch.randn(1, 6, 32)

    def run() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return llm.logits(llm.hidden(embeds, torch.arange(6)[None], ((6,),)))

    before, size = run(), sum(p.numel() * p.element_size() for p in llm.parameters())
    freed = store_frozen({"llm": llm}, torch.bfloat16, {})
    found = dtypes(llm)
    assert found[torch.bfloat16] >= {"q_proj", "lm_head"}
    assert found[torch.float32] >= {"embed_tokens", "norm", "gate_proj"}
    assert freed == size - sum(p.numel() * p.element_size() for p in llm.parameters()) > 0
    assert torch.equal(run(), before)


def test_shared_tables_and_what_is_handed_on_stay() -> None:
    llm = empty_llm(transformers.Qwen2Config(**SMALL, tie_word_embeddings=True))
    assert not add_lora(llm, LoraSettings(rank=2), "llm")
    kept = "model.model.layers.0.mlp.up_proj.weight"
    store_frozen({"llm": llm}, torch.bfloat16, {"llm": {kept}})
    weights = dict(llm.named_parameters())
    assert weights[kept.replace(".weight", ".base_layer.weight")].dtype == torch.float32
    assert weights["model.model.layers.1.mlp.up_proj.base_layer.weight"].dtype == torch.bfloat16
    assert llm.model.lm_head.weight.dtype == torch.float32
    assert all(weight.dtype == torch.float32 for weight in weights.values() if weight.requires_grad)
