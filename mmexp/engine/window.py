"""The micro-batches of one optimizer step: sums of losses become a mean over all supervised tokens of the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmexp.engine.ranks import total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import Trainer
    from torch import Tensor

    from mmexp.contracts import Losses


class Window:
    """Counts of the step in hand. All processes must ask at the same places."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        """Samples of the step so far, for messages."""
        self._reference, self._own = 0.0, 0

    def normalised(self, losses: Losses, ids: Sequence[str], trainer: Trainer) -> Tensor:
        """The loss of one micro-batch over the count of the window's first one; `factor` mends it.

        With one micro-batch a step, that count is the right one and nothing has to be mended.
        """
        first = next(iter(losses.counts))
        if not self._reference:  # the same everywhere, or the mean of processes' gradients would be none over tokens
            self._reference = max(total(trainer, [losses.counts[first]])[0] / trainer.world_size, 1)
        self._own += losses.counts[first]
        self.ids += ids
        sums = [
            losses.weights.get(name, 1.0) * value / (self._reference if name == first else max(losses.counts[name], 1))
            for name, value in losses.sums.items()
        ]
        return torch.stack(sums).sum() if len(sums) > 1 else sums[0]

    def factor(self, accumulate: int, trainer: Trainer) -> float:
        """What the step's gradients are multiplied by; the next micro-batch begins another step's counts."""
        count = total(trainer, [self._own])[0]
        reference, self._reference, self._own = self._reference, 0.0, 0
        return reference * accumulate * trainer.world_size / max(count, 1)
