"""One modality's way into the LLM."""

from __future__ import annotations

import torch
from torch import nn

from mmexp.contracts import EncoderSpec
from mmexp.model import Branch


def test_features_of_whole_numbers_keep_their_type_through_a_connector_without_weights() -> None:
    encoder = nn.EmbeddingBag(10, 4, mode="sum")
    branch = Branch(encoder, nn.Identity(), EncoderSpec(width=4, grid=(1, 1), item_shape=(3,)))
    soft = branch(torch.tensor([[1, 2, 3]]))
    assert soft.dtype == torch.float32
    soft.sum().backward()
    assert encoder.weight.grad is not None


def test_features_take_the_type_of_the_connector() -> None:
    branch = Branch(nn.Identity(), nn.Linear(4, 2).bfloat16(), EncoderSpec(width=4, grid=(1, 1)))
    assert branch(torch.zeros(1, 1, 4)).dtype == torch.bfloat16


class HasTrunk(nn.Module):
    """As a tower of timm: a child `trunk` that makes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 2 * values


def test_a_child_that_is_called_trunk_is_kept_only_where_the_encoder_can_go_on_from_it() -> None:
    branch = Branch(HasTrunk(), nn.Identity(), EncoderSpec(width=4, grid=(1, 1)))
    values = torch.arange(12.0).reshape(3, 1, 4)
    assert branch.stem_modules == [branch.encoder]
    mixed = branch.encode(values[:2], branch.stem(values[2:]), torch.tensor([2, 0, 1]))
    assert torch.equal(mixed, 2 * values[[2, 0, 1]])
