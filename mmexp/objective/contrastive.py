"""Contrastive learning between images and the statements that are true of them, with late interaction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from mmexp.contracts import IGNORE, Batch, Losses
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.model import MultimodalModel, Plan


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """InfoNCE in both directions, where a text is one line of the answer and may be true of several images.

    Source: FILIP (Yao et al. 2021), section 3.1, for the similarity of a text with patches; here their logsumexp
    instead of the maximum. Trains an encoder; the LLM only lends its tokenizer.
    """

    width: int = 128
    """Width of the common space and of the text tower."""
    max_line_tokens: int = 32
    """Longest line."""
    max_scale: float = 60.0
    """Largest inverse temperature."""

    def build(self, plan: Plan) -> Contrastive:
        newline = plan.hf_tokenizer("\n", add_special_tokens=False).input_ids
        spec = plan.inputs["image"].spec if "image" in plan.inputs else None
        return Contrastive(self, plan.spec.vocab_size, spec.width if spec else 1, set(newline))


class Contrastive(nn.Module):
    """Owns a text tower (embedding, sum, MLP) and the projection of patches; both are thrown away after training."""

    def __init__(self, config: ContrastiveConfig, vocab_size: int, encoder_width: int, newline: set[int]) -> None:
        super().__init__()
        width = config.width
        self.max_length, self.max_scale, self.newline = config.max_line_tokens, config.max_scale, newline
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.randn(config.max_line_tokens, width) * 0.02)
        self.text = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )
        self.patches = nn.Linear(encoder_width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        nn.init.normal_(self.embedding.weight, std=0.1)

    def requires(self, plan: Plan) -> None:
        """Raises ConfigError when there are no images to contrast."""
        if "image" not in plan.inputs:
            raise ConfigError("no image branch", expected="an encoder", where="objective", fix="encoder=shapes_vit")

    def forward(self, model: MultimodalModel, batch: Batch) -> Losses:
        """Loss sums over pairs that are true, in both directions; the count is the number of such pairs."""
        ids, true = self.lines(batch)
        encoder: Any = model.inputs["image"].encoder
        features = encoder(batch.media["image"])
        similarity = self.similarity(features, ids.to(features.device))
        true = true.to(features.device)
        others = similarity.masked_fill(true, float("-inf"))
        chosen = similarity[true]
        text, image = true.nonzero(as_tuple=True)
        to_image = functional.softplus(others.logsumexp(1)[text] - chosen)
        to_text = functional.softplus(others.logsumexp(0)[image] - chosen)
        total = (to_image.sum() + to_text.sum()) / 2
        return Losses(
            sums={"contrastive": total},
            counts={"contrastive": int(true.sum())},
            report={"scale": self.scale.detach(), "loss_to_image": to_image.mean().detach()},
        )

    @property
    def scale(self) -> Tensor:
        """Inverse temperature."""
        return self.log_scale.exp().clamp(max=self.max_scale)

    def similarity(self, features: Tensor, ids: Tensor) -> Tensor:
        """float[M, P, E] and lines int64[U, L] (0 behind the end) to similarities float[U, M]."""
        patches = functional.normalize(self.patches(features), dim=-1)
        present = (ids != 0).unsqueeze(-1)
        words = functional.gelu(self.embedding(ids) + self.positions[: ids.shape[1]]) * present
        lines = functional.normalize(self.text(words.sum(1)), dim=-1)
        return (self.scale * torch.einsum("ue,mpe->ump", lines, patches)).logsumexp(-1)

    def lines(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The distinct lines of all answers int64[U, L], and which are true of which image, bool[U, M]."""
        found: dict[tuple[int, ...], set[int]] = {}
        for sample, (row, start, end) in enumerate(batch.spans()):
            labels = batch.labels[row, start:end]
            for line in _split(labels[labels != IGNORE].tolist(), self.newline):
                found.setdefault(line[: self.max_length], set()).add(sample)
        ids = torch.zeros(len(found), max(map(len, found)), dtype=torch.long)
        true = torch.zeros(len(found), len(batch.ids), dtype=torch.bool)
        for index, (line, samples) in enumerate(found.items()):
            ids[index, : len(line)] = torch.tensor(line)
            true[index, list(samples)] = True
        return ids, true


def _split(ids: list[int], newline: set[int]) -> list[tuple[int, ...]]:
    lines: list[tuple[int, ...]] = [()]
    for token in ids:
        lines = [*lines, ()] if token in newline else [*lines[:-1], (*lines[-1], token)]
    return [line for line in lines if line]
