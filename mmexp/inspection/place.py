"""Where soft tokens and patches lie in a picture.

A view is what the encoder sees in one go; its window is in shares of the upright picture, beyond 0 to 1 it is padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmexp.contracts import Box, Size
from mmexp.prompt.boxtext import WHOLE
from mmexp.prompt.media import SizedTransform

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.contracts import Batch
    from mmexp.model import InputPlan


def windows(transform: Any, size: Size, num_media: int = 1) -> tuple[Box, ...]:
    """What each view of a picture shows, in the order of the views."""
    if hasattr(transform, "windows"):
        return transform.windows(size, num_media)
    return (transform.window(size, num_media) if isinstance(transform, SizedTransform) else WHOLE,)


def union(window: Box) -> Box:
    """The smallest box around the picture and the window, in shares of the picture: what is drawn."""
    return (min(window[0], 0.0), min(window[1], 0.0), max(window[2], 1.0), max(window[3], 1.0))


def inside(box: Box, frame: Box) -> Box:
    """A box in shares of `frame`; both are given in shares of the picture."""
    width, height = frame[2] - frame[0], frame[3] - frame[1]
    return (
        (box[0] - frame[0]) / width,
        (box[1] - frame[1]) / height,
        (box[2] - frame[0]) / width,
        (box[3] - frame[1]) / height,
    )


def soft_grid(branch: InputPlan) -> tuple[int, int] | None:
    """Rows and columns of soft tokens that have places of their own; None where they have none."""
    ask = getattr(branch.connector, "soft_grid", None)
    found = ask(branch.spec) if ask else None
    return found and (found[1], found[0])


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Which soft token stands in each slot of all media of one kind."""

    source: Tensor
    """int64[K, taps] into the M * N soft tokens, -1 for the end of a row, which is none of them"""
    share: Tensor
    """float32[K, taps]"""
    num_soft: int
    """N"""
    num_views: int
    """M"""

    @classmethod
    def of(cls, batch: Batch, modality: str, num_soft: int) -> Slots:
        """Those of a batch, whose connector gives N = `num_soft` soft tokens for a view."""
        lengths = batch.slot_lengths[modality]
        num_views = sum(batch.views.get(modality, (1,) * len(lengths)))
        if modality not in batch.gather:
            source = torch.arange(sum(lengths))[:, None]
        else:
            pairs = batch.gather[modality].cpu()
            view, place = (pairs if pairs.dim() == 3 else pairs[:, None]).unbind(-1)
            source = torch.where(place < 0, -1, view * num_soft + place)
        share = batch.blend[modality].cpu() if modality in batch.blend else torch.ones(source.shape)
        return cls(source=source, share=share, num_soft=num_soft, num_views=num_views)

    def spread(self, values: Tensor) -> Tensor:
        """What slots have, float[..., K], given to the soft tokens in them: float[..., M, N]."""
        spread = values.new_zeros(*values.shape[:-1], self.num_views * self.num_soft)
        for source, share in zip(self.source.T, self.share.T, strict=True):
            there = source >= 0
            spread.index_add_(-1, source[there], values[..., there] * share[there])
        return spread.unflatten(-1, (self.num_views, self.num_soft))

    def first_slots(self) -> list[int]:
        """Per soft token (M * N) the first slot that holds it, -1 where none does."""
        found = [-1] * (self.num_views * self.num_soft)
        for slot, (sources, shares) in enumerate(zip(self.source.tolist(), self.share.tolist(), strict=True)):
            for source, share in zip(sources, shares, strict=True):
                if source >= 0 and share > 0 and found[source] < 0:
                    found[source] = slot
        return found
