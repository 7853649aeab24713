"""A batch as the collator makes them, without content: whole numbers are there, pictures are only a shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmexp.contracts import IGNORE, Batch
from mmexp.sizing.workload import slots_of_medium

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.model import Plan


def synthetic_batch(
    plan: Plan, num_samples: int, tokens: float, supervised: float, media: float, row: str = "flat"
) -> Batch:
    """`num_samples` equal samples: media first, then text, whose end carries loss.

    Args:
        plan: Tells slots and shapes.
        num_samples: Samples of the micro-batch.
        tokens: Of each sample, soft tokens included.
        supervised: Tokens with loss of each sample.
        media: Media of each modality a sample; with 0.9, nine of ten samples have one.
        row: flat, padded, packed (which has as many tokens as flat), or shared (sized as flat, one text a picture).

    Returns:
        The batch, with its media on the device `meta`.
    """
    each = _spread(num_samples, media)
    modalities = list(plan.inputs)
    slots = {m: slots_of_medium(plan, m)[1] if plan.spec.width else plan.inputs[m].num_soft_tokens for m in modalities}
    least = max((sum(count * slots[m] for m in modalities) for count in each), default=0) + 2
    length = max(round(tokens), least)
    num_labels = min(max(1, round(supervised)), length - least + 1)
    ids = torch.zeros(num_samples, length, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORE)
    labels[:, length - num_labels :] = 1
    masks = {m: torch.zeros_like(ids, dtype=torch.bool) for m in modalities}
    for sample, count in enumerate(each):
        start = 1
        for m in modalities:
            masks[m][sample, start : start + count * slots[m]] = True
            start += count * slots[m]
    positions = torch.arange(length).expand(num_samples, -1)
    flat = row != "padded"

    def laid(tensor: Tensor) -> Tensor:
        return tensor.reshape(1, -1) if flat else tensor.contiguous()

    def nested(value: int) -> tuple[tuple[int, ...], ...]:
        return ((value,) * num_samples,) if flat else ((value,),) * num_samples

    names = tuple(f"sample{index}" for index in range(num_samples))
    return Batch(
        input_ids=laid(ids),
        labels=laid(labels),
        positions=laid(positions),
        segment_lengths=nested(length),
        prompt_lengths=nested(length - num_labels),
        ids=names,
        datasets=("",) * num_samples,
        meta=({},) * num_samples,
        slots={m: laid(mask) for m, mask in masks.items()} if sum(each) else {},
        num_supervised=num_samples * num_labels,
        **_media(plan, each, slots, names),
    )


def _media(plan: Plan, each: list[int], slots: dict[str, int], names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a batch that speak of media."""
    total = sum(each)
    if not total:
        return {}
    views = {m: slots_of_medium(plan, m)[0] if plan.spec.width else 1 for m in plan.inputs}
    owners = tuple(name for name, count in zip(names, each, strict=True) for _ in range(count))
    read = {m: branch.instruction.max_tokens for m, branch in plan.inputs.items() if branch.instruction}
    words = {m: torch.zeros(total * views[m], length, dtype=torch.int64) for m, length in read.items()}
    shape = {m: branch.spec.item_shape for m, branch in plan.inputs.items()}
    return {
        "media": {m: torch.empty(total * views[m], *shape[m], device="meta") for m in plan.inputs},
        "slot_lengths": {m: (slots[m],) * total for m in plan.inputs},
        "media_owners": dict.fromkeys(plan.inputs, owners),
        "instructions": words,
        "instruction_masks": {m: torch.ones_like(ids, dtype=torch.bool) for m, ids in words.items()},
        "views": {m: (views[m],) * total for m in plan.inputs if views[m] > 1},
    }


def _spread(num_samples: int, media: float) -> list[int]:
    """How many media each sample has: whole numbers that add up to at least `num_samples * media`."""
    total = -int(-num_samples * media // 1)
    return [total * (at + 1) // num_samples - total * at // num_samples for at in range(num_samples)]
