"""Contrastive learning between regions of images and what is said of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from mmexp.contracts import IGNORE, Batch, Losses
from mmexp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.model import MultimodalModel, Plan

_LINE = re.compile(r"(?P<phrase>.*\S) \[(?P<box>\d?\.\d+(?:, \d?\.\d+){3})\]")
_LEAST_COVER = 0.25
"""Share of a patch that a region has to cover."""


class Region(NamedTuple):
    """A part of an image and the phrase for it."""

    image: int
    words: tuple[tuple[int, ...], ...]
    """The token ids of each word."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of width and height."""


@dataclass(frozen=True, kw_only=True)
class RegionContrastiveConfig:
    """InfoNCE in both directions between patches and statements about the region that they show.

    Every line of an answer is a phrase and its box: `small red circle [0.12, 0.34, 0.56, 0.78]`. The statements are
    the phrase, its last words, and its last words with one edge of the box (`red circle`, left 0.12). A statement is
    the plain sum of its words, and an edge a sum of waves of its value, so that what a patch shows can be read from
    its features by linear maps. Trains an encoder, on the layer that the model selects; the LLM only lends its
    tokenizer.

    Source: after RegionCLIP (Zhong et al. 2022), section 3.3, with patches in the place of region crops.
    """

    width: int = 128
    """Width of the common space."""
    frequencies: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Waves of an edge, in periods over the side of the image."""
    patches_per_region: int = 3
    """Patches drawn from each region in one step."""
    max_scale: float = 60.0
    """Largest inverse temperature."""

    def build(self, plan: Plan) -> RegionContrastive:
        return RegionContrastive(self, plan)


class RegionContrastive(nn.Module):
    """Owns word and edge embeddings and the projection of patches; all are thrown away after training."""

    def __init__(self, config: RegionContrastiveConfig, plan: Plan) -> None:
        super().__init__()
        if "image" not in plan.inputs:
            raise ConfigError("no image branch", expected="an encoder", where="objective", fix="encoder=shapes_vit")
        if plan.tiling is not None:
            raise ConfigError(f"{plan.tiling}", expected="one view of each picture, so that patches have one place",
                              where="processor.image_fit", fix="processor.image_fit=squash")  # fmt: skip
        spec = plan.inputs["image"].spec
        self.config, self.grid, self.tokenizer = config, spec.grid, plan.hf_tokenizer
        self.words = nn.Embedding(max(plan.spec.vocab_size, plan.tokenizer.vocab_size), config.width)
        nn.init.normal_(self.words.weight, std=config.width**-0.5)
        waves = 2 * len(config.frequencies) + 1
        self.edges = nn.Parameter(torch.randn(4, waves, config.width) * (waves * config.width) ** -0.5)
        self.patches = nn.Linear(spec.width, config.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def requires(self, plan: Plan) -> None:
        """The constructor has looked for images already."""

    def forward(self, model: MultimodalModel, batch: Batch) -> Losses:
        """Loss sums over pairs that are true, in both directions; the count is the number of such pairs."""
        branch: Any = model.inputs["image"]
        features = branch.encode(*batch.encodes("image"))
        chosen: list[tuple[int, int]] = []
        statements: dict[tuple[Any, ...], int] = {}
        pairs: list[tuple[int, int]] = []
        for region, patches in self.regions(batch):
            said = [statements.setdefault(each, len(statements)) for each in self.statements(region)]
            for patch in patches:
                pairs += [(statement, len(chosen)) for statement in said]
                chosen.append((region.image, patch))
        true = torch.zeros(len(statements), len(chosen), dtype=torch.bool, device=features.device)
        true[tuple(torch.tensor(pairs).T)] = True
        images, places = torch.tensor(chosen).T
        similarity = self.similarity(features[images, places], list(statements))
        others = similarity.masked_fill(true, float("-inf"))
        statement, patch = true.nonzero(as_tuple=True)
        to_patch = functional.softplus(others.logsumexp(1)[statement] - similarity[true])
        to_text = functional.softplus(others.logsumexp(0)[patch] - similarity[true])
        return Losses(
            sums={"contrastive": (to_patch.sum() + to_text.sum()) / 2},
            counts={"contrastive": len(to_patch)},
            report={"scale": self.scale.detach(), "loss_to_patch": to_patch.mean().detach()},
        )

    @property
    def scale(self) -> Tensor:
        """Inverse temperature."""
        return self.log_scale.exp().clamp(max=self.config.max_scale)

    def similarity(self, features: Tensor, statements: list[tuple[Any, ...]]) -> Tensor:
        """Patches float[K, E] and U statements to similarities float[U, K]."""
        device = features.device
        words = [torch.tensor(words) for words, _, _ in statements]
        bags = nn.utils.rnn.pad_sequence(words, batch_first=True, padding_value=-1).to(device)
        sums = (self.words(bags.clamp(min=0)) * (bags >= 0).unsqueeze(-1)).sum(1)
        edged = [index for index, (_, side, _) in enumerate(statements) if side is not None]
        if edged:
            sides = torch.tensor([statements[index][1] for index in edged], device=device)
            values = torch.tensor([statements[index][2] for index in edged], device=device)[:, None]
            angles = 2 * math.pi * values * torch.tensor(self.config.frequencies, device=device)
            waves = torch.cat([angles.sin(), angles.cos(), torch.ones_like(values)], 1)
            edges = torch.einsum("uf,ufw->uw", waves, self.edges[sides])
            sums = sums.index_add(0, torch.tensor(edged, device=device), edges)
        lines = functional.normalize(sums, dim=-1)
        return self.scale * lines @ functional.normalize(self.patches(features), dim=-1).T

    def statements(self, region: Region) -> list[tuple[Any, ...]]:
        """What is true of a region: tuples of token ids, the edge that is meant (0 to 3 or None) and its value."""
        tails = [sum(region.words[start:], ()) for start in range(len(region.words))]
        drawn = torch.randint(len(tails), (4,)).tolist()
        edges = [(tails[tail], side, region.box[side]) for side, tail in enumerate(drawn)]
        return [(tail, None, None) for tail in tails] + edges

    def regions(self, batch: Batch) -> list[tuple[Region, list[int]]]:
        """All regions of a batch with some of their patches; regions too small to own a patch are left out.

        Raises:
            DataError: a line of an answer is not a phrase and a box.
        """
        found = []
        for image, (row, start, end) in enumerate(batch.spans()):
            labels = batch.labels[row, start:end]
            text = self.tokenizer.decode(labels[labels != IGNORE], skip_special_tokens=True)
            regions = [self._region(image, line, batch.ids[image]) for line in text.strip().splitlines()]
            for region, patches in zip(regions, owners([region.box for region in regions], self.grid), strict=True):
                drawn = torch.randperm(len(patches))[: self.config.patches_per_region].tolist()
                if drawn:
                    found.append((region, [patches[index] for index in drawn]))
        return found

    def _region(self, image: int, line: str, sample: str) -> Region:
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise DataError(
                f"the line {line.strip()[:60]!r}",
                expected="a phrase and its box in every line: `red circle [0.12, 0.34, 0.56, 0.78]`",
                where=f"sample {sample}",
                fix="objective=next_token for other answers",
            )
        left, top, right, bottom = map(float, match["box"].split(", "))
        words = (f" {word}" for word in match["phrase"].split())
        ids = tuple(tuple(self.tokenizer(word, add_special_tokens=False).input_ids) for word in words)
        return Region(image, ids, (left, top, right, bottom))


def owners(boxes: list[tuple[float, float, float, float]], grid: tuple[int, int]) -> list[list[int]]:
    """For each box the patches of a grid (rows, columns) that it covers more than any other box does."""
    rows, columns = grid
    owned: list[list[int]] = [[] for _ in boxes]
    for patch in range(rows * columns):
        row, column = divmod(patch, columns)
        covers = [
            max(min(right * columns, column + 1) - max(left * columns, column), 0)
            * max(min(bottom * rows, row + 1) - max(top * rows, row), 0)
            for left, top, right, bottom in boxes
        ]
        most = max(covers, default=0)
        if most >= _LEAST_COVER:
            owned[covers.index(most)].append(patch)
    return owned
