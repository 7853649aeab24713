"""BLIP-2's first stage: the Q-Former learns to say with its queries what a text says about an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from mmexp.contracts import Batch, Losses
from mmexp.errors import ConfigError
from mmexp.objective.base import alone
from mmexp.objective.pairs import draw, hits, image_features, qformer_of, same_image, texts_of, widen

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.connector import Qformer
    from mmexp.contracts import Gather
    from mmexp.model import MultimodalModel, Plan

_NEVER = -10000.0
"""Similarity of pairs that no negative may be drawn from."""


@dataclass(frozen=True, kw_only=True)
class Blip2RepresentConfig:
    """Contrast (`itc`), matching (`itm`) and image-grounded generation (`itg`) of images and texts, summed.

    `itc` compares each text with the query that is nearest to it. `itm` judges pairs, with negatives drawn where the
    contrast is least sure. `itg` predicts the text behind the queries. A weight of 0 leaves a loss out; without `itc`
    negatives are drawn evenly. A sample is one image and one text: all tokens beside the image's slots.

    The temperature does not decay here (it has no dimension), in the published code it does.

    Source: BLIP-2, section 3.1; salesforce/LAVIS @ 506965b lavis/models/blip2_models/blip2_qformer.py.
    """

    itc: float = 1.0
    """Weight of the contrastive loss."""
    itm: float = 1.0
    """Weight of the matching loss."""
    itg: float = 1.0
    """Weight of the generation loss."""
    width: int = 256
    """Width of the space in which images and texts are compared."""
    embeds: ClassVar[bool] = True
    """The objective is an `Embedding`."""

    temperature: float = 0.07
    """What similarities are divided by at first; it is learned."""
    label_smoothing: float = 0.1
    """Of `itc` and `itg`."""
    shared_images: bool = True
    """Whether samples whose rows have the same `image_id` are pairs of each other, and never negatives (retrieval
    fine-tuning). Rows without it have only their own text."""

    def __post_init__(self) -> None:
        weights = {"itc": self.itc, "itm": self.itm, "itg": self.itg}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ConfigError(f"{weights}", expected="weights of at least 0, one of them above", where="objective")

    def build(self, plan: Plan) -> Blip2Represent:
        return Blip2Represent(self, plan)


class Blip2Represent(nn.Module):
    """Owns the heads: `vision_proj`, `text_proj` and `temp` of the contrast, `itm_head` of matching.

    Args:
        config: Weights and sizes.
        plan: Tells the Q-Former's sizes and the token that begins a predicted text.

    Raises:
        ConfigError: the plan has no Q-Former that can do what is asked.
    """

    def __init__(self, config: Blip2RepresentConfig, plan: Plan) -> None:
        super().__init__()
        self.config = config
        qformer = qformer_of(plan, config.itg > 0)
        self.gather: Gather = alone
        """The engine puts one that joins ranks here."""
        self.bos_id = plan.tokenizer.control_id("bos") if config.itg else -1
        self.max_text_tokens = qformer.max_text_tokens
        self.matches = config.itm > 0
        if config.itc:
            self.vision_proj = nn.Linear(qformer.width, config.width)
            self.text_proj = nn.Linear(qformer.width, config.width)
            self.temp = nn.Parameter(torch.tensor(config.temperature))
        if config.itm:
            self.itm_head = nn.Linear(qformer.width, 2)

    def requires(self, plan: Plan) -> None:
        """The constructor has looked for a Q-Former already."""

    def forward(self, model: MultimodalModel, batch: Batch) -> Losses:
        """Sums over pairs (`itc`), judged pairs (`itm`) and predicted tokens (`itg`)."""
        qformer, features = _qformer(model), self.features(model, batch)
        ids, mask = self.texts(batch)
        same, first = same_image(batch, self.gather, self.config.shared_images)
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        report: dict[str, Tensor] = {}
        doubt = torch.zeros(2, *same.shape, device=ids.device)
        seen, memory = qformer.look(features) if self.config.itc or self.config.itg else (None, None)
        if self.config.itc:
            assert seen is not None
            doubt = self._similarities(self._project_image(seen), self.embed_text(model, ids, mask))
            sums["itc"], counts["itc"] = self._contrast(doubt, same), len(ids)
            report |= {"temp": self.temp.detach(), "itc_accuracy": hits(doubt.detach(), first)}
        if self.config.itm:
            logits, labels = self._judge(model, (features, ids, mask), doubt.detach(), same)
            sums["itm"] = functional.cross_entropy(logits.float(), labels, reduction="sum")
            counts["itm"] = len(labels)
            report["itm_accuracy"] = (logits.argmax(1) == labels).float().sum() / max(len(labels), 1)
        if self.config.itg:
            sums["itg"], counts["itg"] = self._generate(qformer, ids, mask, memory)
        weights = {name: getattr(self.config, name) for name in sums}
        return Losses(sums=sums, counts=counts, weights=weights, report=report)

    def features(self, model: MultimodalModel, batch: Batch) -> Tensor:
        """See `pairs.image_features`."""
        return image_features(model, batch)

    def texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `pairs.texts_of`."""
        return texts_of(batch, self.max_text_tokens)

    def embed_image(self, model: MultimodalModel, features: Tensor) -> Tensor:
        """float[B, P, E] to one unit vector a query, float[B, Q, width]."""
        return self._project_image(_qformer(model).look(features)[0])

    def embed_text(self, model: MultimodalModel, ids: Tensor, mask: Tensor) -> Tensor:
        """int64[B, T] and bool[B, T] to unit vectors float[B, width], of the first token."""
        return functional.normalize(self.text_proj(_qformer(model).read(ids, mask)[:, 0]), dim=-1)

    def _project_image(self, seen: Tensor) -> Tensor:
        return functional.normalize(self.vision_proj(seen), dim=-1)

    def _similarities(self, image: Tensor, text: Tensor) -> Tensor:
        """float[2, B, B of all ranks]: own images to all texts, own texts to all images.

        What is gathered carries no gradient, the own rows in it neither: each direction trains the side that asks.
        """
        images, texts = self.gather(image.detach())[0], self.gather(text.detach())[0]
        to_text = torch.einsum("bqw,nw->bnq", image, texts).amax(2)
        to_image = torch.einsum("bw,nqw->bnq", text, images).amax(2)
        return torch.stack([to_text, to_image]).float() / self.temp

    def match(self, model: MultimodalModel, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """float[B, 2]: how much image and text do not belong together, and how much they do."""
        qformer = _qformer(model)
        rows = qformer.look_and_read(features, ids, mask)[:, : qformer.num_queries]
        return self.itm_head(rows).mean(1)

    def _contrast(self, similarity: Tensor, same: Tensor) -> Tensor:
        """Cross-entropy against all pairs of the same image, half from each direction, summed over B."""
        smoothing = self.config.label_smoothing
        targets = (1 - smoothing) * same / same.sum(1, keepdim=True) + smoothing / max(same.shape[1], 1)
        return -(targets * similarity.log_softmax(2)).sum() / 2

    def _judge(
        self, model: MultimodalModel, own: tuple[Tensor, Tensor, Tensor], doubt: Tensor, same: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits and labels of own pairs, own texts with drawn images, and own images with drawn texts.

        Nothing is drawn for a row that has no negative in the whole batch.
        """
        features, ids, mask = own
        all_features, _ = self.gather(features, with_gradient=True)
        all_ids, _ = self.gather(ids)
        all_mask, _ = self.gather(mask)
        has = (~same).any(1)
        texts, images = (draw(rows.masked_fill(same, _NEVER)[has]) for rows in doubt)
        ids, mask = widen(ids, all_ids.shape[1]), widen(mask, all_ids.shape[1])
        logits = self.match(
            model,
            torch.cat([features, all_features[images], features[has]]),
            torch.cat([ids, ids[has], all_ids[texts]]),
            torch.cat([mask, mask[has], all_mask[texts]]),
        )
        labels = torch.zeros(len(logits), dtype=torch.int64, device=ids.device)
        labels[: len(ids)] = 1
        return logits, labels

    def _generate(self, qformer: Qformer, ids: Tensor, mask: Tensor, memory: Any) -> tuple[Tensor, int]:
        """Next-token loss of a text whose first token becomes the one that begins a prediction, and its tokens."""
        asked = ids.clone()
        asked[:, 0] = self.bos_id
        hidden = qformer.write(asked, mask, memory)
        logits = qformer.words(hidden[:, :-1][mask[:, 1:]])
        labels = ids[:, 1:][mask[:, 1:]]
        loss = functional.cross_entropy(
            logits.float(), labels, reduction="sum", label_smoothing=self.config.label_smoothing
        )
        return loss, len(labels)


def _qformer(model: MultimodalModel) -> Qformer:
    branch: Any = model.inputs["image"]
    return branch.connector.qformer
