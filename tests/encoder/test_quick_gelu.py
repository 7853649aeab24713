"""CLIP's activation with a backward pass of its own, beside transformers' own code."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.activations import QuickGELUActivation

from mmexp.encoder.quick_gelu import quick_gelu, replace_quick_gelu
from tests.kept import backward_of

SHAPE = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 16, "patch_size": 4}  # fmt: skip
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def pair() -> tuple[Any, Any]:
    """transformers' encoder, and the same with ours in it."""
    torch.manual_seed(0)
    plain = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SHAPE))
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    lean = copy.deepcopy(plain)
    assert replace_quick_gelu(lean) == 2
    assert replace_quick_gelu(lean) == 0, "once is enough"
    return plain, lean


def gradients(model: Any, low: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Features, gradients, and bytes kept."""
    return backward_of(model, lambda one: one(PIXELS).last_hidden_state, lambda features: features.pow(3).sum(), low)


@pytest.mark.parametrize("low", [False, True])
def test_features_are_equal_and_gradients_up_to_rounding(low: bool) -> None:
    (features, theirs, much), (own, ours, little) = (gradients(model, low) for model in pair())
    assert torch.equal(own, features)
    assert ours.keys() == theirs.keys()
    close, largest = 3e-2 if low else 2e-5, max(float(each.abs().max()) for each in theirs.values())
    for name, gradient in theirs.items():  # those of the keys' biases are nothing but rounding
        torch.testing.assert_close(ours[name], gradient, rtol=close, atol=close * largest)
    assert little < 0.9 * much


def test_without_a_gradient_features_are_equal_and_the_input_stays() -> None:
    plain, lean = pair()
    with torch.no_grad():
        assert torch.equal(lean(PIXELS).last_hidden_state, plain(PIXELS).last_hidden_state)
        x = torch.randn(5, 7)
        before = x.clone()
        assert torch.equal(quick_gelu(x), QuickGELUActivation()(x))
        assert torch.equal(x, before)


def test_in_double_precision_it_has_the_exact_derivative() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(quick_gelu, (x,))


def test_another_activation_stays_as_it_is() -> None:
    siglip = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SHAPE))
    assert replace_quick_gelu(siglip) == 0
