"""Soft tokens land in their slots, or an error names who and how many."""

from __future__ import annotations

import pytest
import torch

from mmexp.errors import SpliceError
from mmexp.model.splice import left_pad, splice, take_part


def slots(*positions: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(2, 6, dtype=torch.bool)
    for row, column in positions:
        mask[row, column] = True
    return mask


def test_every_soft_token_lands_in_order() -> None:
    embeds, soft = torch.zeros(2, 6, 3), torch.arange(12.0).reshape(2, 2, 3) + 1
    mask = slots((0, 1), (0, 2), (1, 4), (1, 5))
    out = splice(embeds, soft, mask, modality="image", slot_lengths=(2, 2), owners=("a", "b"))
    torch.testing.assert_close(out[mask], soft.flatten(0, 1))
    assert out[~mask].abs().sum() == 0


@pytest.mark.parametrize(("lengths", "message"), [((2, 3), "sample b"), ((1, 2), "sample a")])
def test_wrong_counts_name_the_sample(lengths: tuple[int, int], message: str) -> None:
    with pytest.raises(SpliceError, match=message):
        splice(
            torch.zeros(2, 6, 3),
            torch.zeros(2, 2, 3),
            slots((0, 1)),
            modality="image",
            slot_lengths=lengths,
            owners=("a", "b"),
        )


def test_surplus_media_are_refused() -> None:
    with pytest.raises(SpliceError, match="3 encoded media, 2 laid out"):
        splice(
            torch.zeros(2, 6, 3),
            torch.zeros(3, 1, 3),
            slots(),
            modality="image",
            slot_lengths=(1, 1),
            owners=("a", "b"),
        )


def test_taking_part_changes_nothing_but_the_graph() -> None:
    embeds, soft = torch.randn(2, 6, 3), torch.randn(1, 2, 3, requires_grad=True)
    out = take_part(embeds, soft)
    torch.testing.assert_close(out, embeds, rtol=0, atol=0)
    out.sum().backward()
    assert soft.grad is not None
    assert soft.grad.abs().sum() == 0


def test_left_pad_moves_content_to_the_right_end() -> None:
    embeds = torch.arange(12.0).reshape(2, 6, 1)
    rows, mask = left_pad(embeds, [2, 4])
    assert rows[0].flatten().tolist() == [0, 0, 0, 1]
    assert rows[1].flatten().tolist() == [6, 7, 8, 9]
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
