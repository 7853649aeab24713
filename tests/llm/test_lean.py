"""Norms, gated MLPs and rotary positions with a backward pass of their own, beside transformers' own code."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from mmexp.llm import attention
from mmexp.llm.causal import empty_llm
from mmexp.llm.lean import keep_less
from mmexp.llm.rotary import rotate
from tests.kept import backward_of

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0}  # fmt: skip
KINDS = ("RMSNorm", "MLP", "Attention")
FAMILIES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
}
IDS = torch.randint(1, 64, (2, 11), generator=torch.Generator().manual_seed(0))


def pair(family: str, **changes: Any) -> tuple[Any, Any]:
    """transformers' model, and the same with lean modules."""
    torch.manual_seed(0)
    config = FAMILIES[family](**SHAPE, **changes)
    plain: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention.register())
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    lean = copy.deepcopy(plain)
    assert keep_less(lean) == sum(type(each).__name__.endswith(KINDS) for each in plain.modules())
    return plain, lean


def gradients(model: Any, low: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Logits, gradients, and bytes kept."""

    def logits(model: Any) -> torch.Tensor:
        return model(input_ids=IDS, use_cache=False).logits

    return backward_of(model, logits, lambda found: found.log_softmax(-1)[..., 3].sum(), low)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_outputs_are_equal_and_gradients_up_to_rounding(family: str, low: bool) -> None:
    (logits, theirs, much), (own, ours, little) = (gradients(model, low) for model in pair(family))
    assert torch.equal(own, logits)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        close = 3e-2 if low else 2e-5
        torch.testing.assert_close(ours[name], gradient, rtol=close, atol=close * float(gradient.abs().max()))
    assert little < 0.9 * much


@pytest.mark.parametrize(
    "kind",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    ],
    ids=lambda kind: kind["rope_type"],
)  # fmt: skip
def test_positions_of_every_kind_turn_as_they_do_in_transformers(kind: dict[str, Any]) -> None:
    plain, lean = pair("llama", rope_parameters={"rope_theta": 1e4, **kind}, max_position_embeddings=64)
    (logits, theirs, _), (own, ours, _) = (gradients(model, low=False) for model in (plain, lean))
    assert torch.equal(own, logits)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=2e-5, atol=2e-5 * float(gradient.abs().max()))


def test_a_turn_has_the_exact_derivative_and_the_wider_precision() -> None:
    angles = torch.randn(2, 5, 4, dtype=torch.float64)
    cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x.transpose(1, 2), cos, sin), (x,))
    low = x.detach().bfloat16().requires_grad_()
    turned = rotate(low.transpose(1, 2), cos.float(), sin.float())
    turned.sum().backward()
    assert turned.dtype == torch.float32
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("trained", ["layers.0.mlp.up_proj", "layers.1.post_attention_layernorm", "embed_tokens"])
def test_a_part_that_is_frozen_gets_none(trained: str) -> None:
    found = []
    for model in pair("llama"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained in name)
        found.append(gradients(model, low=False)[1])
    assert found[0].keys() == found[1].keys() == {f"model.{trained}.weight"}
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=2e-5, atol=2e-5 * float(gradient.abs().max()))


def test_in_double_precision_a_gated_mlp_has_the_exact_derivative() -> None:
    _, lean = pair("llama")
    x = torch.randn(3, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lean.double().model.layers[0].mlp, (x,))


def test_other_classes_and_activations_stay() -> None:
    gemma = transformers.GemmaConfig(**{**SHAPE, "head_dim": 8})
    assert keep_less(transformers.AutoModelForCausalLM.from_config(gemma)) == 0
    gelu = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SHAPE, hidden_act="gelu"))
    assert keep_less(gelu) == 7, "norms and attention"
    assert keep_less(gelu) == 0, "once is enough"


def test_every_llm_gets_them_and_keeps_the_names_of_its_weights() -> None:
    plain, _ = pair("llama")
    own = empty_llm(plain.config).model
    assert keep_less(own) == 0
    assert own.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(own.model.norm, type(plain.model.norm))
