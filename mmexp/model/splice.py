"""The only place where soft tokens meet text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mmexp.errors import SpliceError

if TYPE_CHECKING:
    from torch import Tensor


def splice(
    embeds: Tensor,
    soft: Tensor,
    slots: Tensor,
    *,
    modality: str,
    slot_lengths: Sequence[int],
    owners: Sequence[str],
) -> Tensor:
    """Text embeddings with the soft tokens of one modality in their slots.

    The counts are compared first: masked scatter would drop surplus rows without a word.

    Args:
        embeds: float[B, T, D]
        soft: float[M, N, D]
        slots: bool[B, T]
        modality: For messages.
        slot_lengths: Slots of each of the M media, as laid out on the CPU.
        owners: Sample id of each of the M media.

    Raises:
        SpliceError: a medium has more or fewer soft tokens than slots.
    """
    if len(slot_lengths) != soft.shape[0]:
        raise SpliceError(
            f"{soft.shape[0]} encoded media, {len(slot_lengths)} laid out in the text",
            where=f"{modality}, samples {', '.join(owners[:4])}",
            fix="this batch was not made by mmexp's collator; check its media and slot_lengths",
        )
    for length, owner in zip(slot_lengths, owners, strict=True):
        if length != soft.shape[1]:
            raise SpliceError(
                f"{soft.shape[1]} soft tokens",
                expected=f"{length}, the slots laid out in the text",
                where=f"sample {owner}, {modality}",
                fix="the processor and the model come from different plans; build both from one configuration",
            )
    return embeds.masked_scatter(slots.unsqueeze(-1), soft.to(embeds.dtype))


def take_part(embeds: Tensor, soft: Tensor) -> Tensor:
    """Text embeddings, unchanged, that still depend on `soft` with weight zero.

    A batch without an item of a modality runs its branch on an empty item and joins it here. Otherwise a rank whose
    batch has no image would miss the gradient exchange of the connector, and every rank would wait for it for ever.
    """
    return embeds + (soft.sum() * 0).to(embeds.dtype)


def left_pad(embeds: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows with their content moved to the right end, as generation needs it.

    Args:
        embeds: float[B, T, D], content at the left.
        lengths: How many positions of each row are content.

    Returns:
        float[B, L, D] and mask int64[B, L], with L the longest row.
    """
    longest = max(lengths)
    padded = embeds.new_zeros(len(lengths), longest, embeds.shape[2])
    mask = torch.zeros(len(lengths), longest, dtype=torch.long, device=embeds.device)
    for row, length in enumerate(lengths):
        padded[row, longest - length :] = embeds[row, :length]
        mask[row, longest - length :] = 1
    return padded, mask
