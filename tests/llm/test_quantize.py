"""LLMs in 8 and 4 bit on the CPU: the layers of transformers' own loading, and full precision handed on."""

from __future__ import annotations

import copy
import gc
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear8bitLt

from mmexp.errors import ConfigError
from mmexp.llm import CausalConfig, Seq2SeqConfig, TinyLlmConfig, num_weights, quantize_llm
from mmexp.llm.quantize import require_library

CPU = torch.device("cpu")
IDS = torch.arange(4, 16)[None]
LAYERS = {"int8": "FrozenLinear8bitLt", "nf4": "Linear4bit"}


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OPT checkpoint of two layers."""
    torch.manual_seed(0)
    config = transformers.OPTConfig(hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
                                    vocab_size=259, max_position_embeddings=40, word_embed_proj_dim=64, init_std=0.2,
                                    dropout=0.0)  # fmt: skip
    folder = tmp_path_factory.mktemp("opt")
    transformers.OPTForCausalLM(config).save_pretrained(folder)
    TinyLlmConfig().load_tokenizer().save_pretrained(folder)
    return folder


def theirs(folder: Path, storage: str, dtype: torch.dtype) -> Any:
    settings: dict[str, Any] = {"load_in_8bit": True}
    if storage == "nf4":
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
                    "bnb_4bit_compute_dtype": dtype}  # fmt: skip
    config = transformers.BitsAndBytesConfig(**settings)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype).eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_it_computes_what_transformers_computes(opt: Path, storage: Any, dtype: Any) -> None:
    llm = CausalConfig(path=str(opt), dtype=dtype).build().eval()
    exact = llm.model(IDS).logits
    total = sum(map(num_weights, llm.parameters()))
    quantize_llm(llm, storage, CPU)
    reference = theirs(opt, storage, getattr(torch, dtype))
    assert torch.equal(llm.model(IDS).logits, reference(IDS).logits)
    assert 0 < (llm.model(IDS).logits - exact).abs().max() < 0.35 * exact.abs().max()
    kinds = {name: type(module).__name__ for name, module in llm.model.named_modules()}
    assert kinds["model.decoder.layers.1.fc2"] == LAYERS[storage]
    assert kinds["lm_head"] == "Linear"
    assert sum(map(num_weights, llm.parameters())) == total


@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_an_encoder_decoder_keeps_what_transformers_keeps(tmp_path: Path, storage: Any) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=96,
                                   decoder_start_token_id=0, feed_forward_proj="gated-gelu")  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    llm = Seq2SeqConfig(path=str(tmp_path)).build().eval()
    quantize_llm(llm, storage, CPU)
    layer = llm.model.encoder.block[0].layer[-1].DenseReluDense
    assert type(layer.wi_0).__name__ == LAYERS[storage]
    assert type(layer.wo) is torch.nn.Linear
    assert llm.model(input_ids=IDS, decoder_input_ids=IDS).logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_int8_layer_keeps_no_input_and_has_the_same_gradient(opt: Path, dtype: torch.dtype) -> None:
    llm = CausalConfig(path=str(opt)).build().to(dtype).eval().requires_grad_(False)
    quantize_llm(llm, "int8", CPU)
    own = llm.model.model.decoder.layers[0].fc1
    plain = copy.deepcopy(own)
    plain.__class__ = Linear8bitLt
    x = torch.randn(3, 5, 64, dtype=dtype)
    found = {}
    for name, layer in (("own", own), ("plain", plain)):
        leaf = x.clone().requires_grad_()
        out = layer(leaf * 2)
        kept = [each for each in gc.get_objects() if type(each) is torch.Tensor and each.numel() == x.numel()]
        found[name] = (len(kept), out.detach(), *torch.autograd.grad(out.square().sum(), leaf))
    assert found["own"][0] < found["plain"][0]
    for mine, theirs in zip(found["own"][1:], found["plain"][1:], strict=True):
        assert torch.equal(mine, theirs)


def test_what_differs_from_the_base_is_kept_in_full_precision(opt: Path) -> None:
    llm = CausalConfig(path=str(opt)).build()
    name = "model.model.decoder.layers.0.fc1.weight"
    before = llm.state_dict()[name].clone()
    quantize_llm(llm, "int8", CPU, keep={name})
    assert torch.equal(llm.originals[name], before)
    assert llm.state_dict()[name].dtype == torch.int8


def test_none_changes_nothing_and_needs_no_library(opt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    llm = CausalConfig(path=str(opt)).build()
    quantize_llm(llm, "none", CPU)
    require_library("none")
    assert type(llm.model.model.decoder.layers[0].fc1) is torch.nn.Linear
    with pytest.raises(ConfigError) as error:
        quantize_llm(llm, "int8", CPU)
    assert error.value.where == "llm.quantize=int8"
    assert "mmexp[quantize]" in str(error.value)
