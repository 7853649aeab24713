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
    views: Sequence[int] | None = None,
) -> Tensor:
    """Text embeddings with the soft tokens of one modality in their slots.

    The counts are compared first: masked scatter would drop surplus rows without a word.

    Args:
        embeds: float[B, T, D]
        soft: float[M, N, D], or float[slots, D] after `arrange`.
        slots: bool[B, T]
        modality: For messages.
        slot_lengths: Slots of each medium, as laid out on the CPU.
        owners: Sample id of each medium.
        views: How many of the M each medium is; None: one.

    Raises:
        SpliceError: a medium has more or fewer soft tokens than slots.
    """
    if soft.dim() == 3:
        _check_counts(soft.shape[0], soft.shape[1], modality, slot_lengths, owners, views)
    elif soft.shape[0] != sum(slot_lengths):
        raise SpliceError(
            f"{soft.shape[0]} soft tokens, {sum(slot_lengths)} slots laid out in the text",
            where=f"{modality}, samples {', '.join(owners[:4])}",
            fix="this batch was not made by mmexp's collator; check its gather and slot_lengths",
        )
    return embeds.masked_scatter(slots.unsqueeze(-1), soft.to(embeds.dtype))


def _check_counts(
    num_values: int,
    num_soft: int,
    modality: str,
    slot_lengths: Sequence[int],
    owners: Sequence[str],
    views: Sequence[int] | None,
) -> None:
    views = (1,) * len(slot_lengths) if views is None else views
    if sum(views) != num_values or len(views) != len(slot_lengths):
        raise SpliceError(
            f"{num_values} encoded media, {sum(views)} laid out in the text",
            where=f"{modality}, samples {', '.join(owners[:4])}",
            fix="this batch was not made by mmexp's collator; check its media and slot_lengths",
        )
    for length, count, owner in zip(slot_lengths, views, owners, strict=True):
        if length != count * num_soft:
            raise SpliceError(
                f"{count * num_soft} soft tokens",
                expected=f"{length}, the slots laid out in the text",
                where=f"sample {owner}, {modality}",
                fix="the processor and the model come from different plans; build both from one configuration",
            )


def arrange(soft: Tensor, gather: Tensor, newline: Tensor | None, blend: Tensor | None = None) -> Tensor:
    """The soft token of every slot, for media whose slots do not hold the soft tokens of their views in order.

    Args:
        soft: float[M, N, D]
        gather: int64[slots, 2]: index into M and into N, the latter -1 for the end of a row; or int64[slots, 4, 2].
        newline: float[D], what stands at the end of a row; None when there are no ends.
        blend: float32[slots, 4], shares of the four soft tokens that a slot is mixed from; None for one soft token.

    Returns:
        float[slots, D]
    """
    value, place = gather.unbind(-1)
    table = soft.flatten(0, 1)
    index = value * soft.shape[1] + place
    if newline is not None:
        index = torch.where(place < 0, table.shape[0], index)
        table = torch.cat([table, newline.to(table.dtype)[None]])
    if blend is None:
        return table[index]
    mixed = blend[:, :1] * table[index[:, 0]]  # in float32, whatever the soft tokens are
    for tap in range(1, blend.shape[1]):
        mixed = mixed + blend[:, tap : tap + 1] * table[index[:, tap]]
    return mixed.to(soft.dtype)


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
