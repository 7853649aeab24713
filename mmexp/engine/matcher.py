"""Images and texts compared by the heads of an objective: the embed predictor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from mmexp.contracts import Batch, Item, Sample, Text, Turn
from mmexp.data import Collator

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.model import MultimodalModel, Plan


class Matcher:
    """See `mmexp.evaluation.Match`. What it has encoded stays in main memory for `agreement`.

    Args:
        model: In eval mode, on its device.
        plan: The plan it was built from.
        objective: Has the methods of `mmexp.objective.Embedding`.
    """

    def __init__(self, model: MultimodalModel, plan: Plan, objective: Any) -> None:
        self.model, self.plan, self.objective = model, plan, objective
        self.collate = Collator(pad_id=plan.tokenizer.pad_id, row="padded")
        self.device = next(model.parameters()).device
        self._features = torch.empty(0)
        self._ids = self._mask = torch.empty(0)

    @torch.inference_mode()
    def similarities(self, samples: Sequence[Sample], texts: Sequence[str], batch_size: int) -> Tensor:
        """float[I, U], I images and U texts: the nearness of an image's nearest query."""
        images, features = [], []
        for batch in self._batches([_image_alone(sample) for sample in samples], batch_size):
            features.append(self.objective.features(self.model, batch))
            images.append(self.objective.embed_image(self.model, features[-1]).cpu())
            features[-1] = features[-1].cpu()
        said, ids, masks = [], [], []
        for batch in self._batches([_text_alone(text) for text in texts], batch_size):
            ids.append(self.objective.texts(batch)[0])
            masks.append(self.objective.texts(batch)[1])
            said.append(self.objective.embed_text(self.model, ids[-1], masks[-1]).cpu())
        self._features = torch.cat(features)
        self._ids, self._mask = _joined(ids), _joined(masks)
        spoken = torch.cat(said).float()
        rows = [torch.einsum("iqw,uw->iuq", block.float(), spoken).amax(2) for block in images]
        return torch.cat(rows)

    @torch.inference_mode()
    def agreement(self, pairs: Tensor, batch_size: int) -> Tensor | None:
        """For int64[K, 2] of image and text float[K]: how much they belong together; None without such a head."""
        if not self.objective.matches:
            return None
        scores = []
        for images, texts in (chunk.T for chunk in pairs.split(batch_size)):
            features = self._features[images].to(self.device)
            ids, mask = self._ids[texts].to(self.device), self._mask[texts].to(self.device)
            scores.append(self.objective.match(self.model, features, ids, mask)[:, 1].float().cpu())
        return torch.cat(scores)

    def _batches(self, samples: Sequence[Sample], size: int) -> Iterator[Batch]:
        for start in range(0, len(samples), size):
            items: list[Item] = [self.plan.processor.encode(sample) for sample in samples[start : start + size]]
            yield self.collate(items).to(self.device)


def _image_alone(sample: Sample) -> Sample:
    """The sample's images and a word in the place of a text, which nobody reads."""
    media = tuple(medium for turn in sample.turns for medium in turn.media)
    return _pair(sample.id, media, "a")


def _text_alone(text: str) -> Sample:
    return _pair(text[:40], (), text)


def _pair(name: str, parts: tuple[Any, ...], text: str) -> Sample:
    said = Turn(role="assistant", parts=(Text(text=text),))
    return Sample(id=name, turns=(Turn(role="user", parts=parts), said))


def _joined(rows: Sequence[Tensor]) -> Tensor:
    """int64[B, T] of different T to one tensor, zeros behind."""
    longest = max(each.shape[1] for each in rows)
    return torch.cat([functional.pad(each, (0, longest - each.shape[1])) for each in rows]).cpu()
