"""Finding the text of an image and the image of a text: recall at 1, 5 and 10, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from mmexp.contracts import Sample
from mmexp.errors import ConfigError
from mmexp.evaluation.base import BenchmarkConfig, Graded, Match, targets

if TYPE_CHECKING:
    from torch import Tensor

_RANKS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(BenchmarkConfig):
    """Each sample is an image with its texts (`meta.targets`, else the answer); all texts of a split are the pool.

    The `top_k` nearest candidates by contrast are ranked again by the score of matching plus their similarity; a model
    without a matching head keeps the first order. `text_recall_*` looks for texts of an image, `image_recall_*` for
    the image of a text; `itc_*` are the same before the second ranking. Equal texts are one entry of the pool, and
    right for every image that has them; the published code counts such an entry as several.

    Source: BLIP-2, section 4.4; salesforce/LAVIS @ 506965b lavis/models/blip2_models/blip2.py, compute_sim_matrix.
    """

    primary: ClassVar[str] = "text_recall_1"

    needs: Literal["generate", "score", "embed"] = "embed"
    """Which of the model's predictors answers."""
    baselines: tuple[str, ...] = ()
    """None: `chance` is among the figures."""
    top_k: int = 128
    """Candidates of the second ranking."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise ConfigError(f"{self.top_k}", expected="at least 1", where="evaluation.*.top_k")

    def grade(self, samples: Sequence[Sample], predictions: Sequence[str]) -> Graded:
        """1 where the text that was found for an image is one of its own."""
        pairs = zip(samples, predictions, strict=True)
        return Graded(scores=tuple(float(text in targets(sample)) for sample, text in pairs))

    def retrieve(self, samples: Sequence[Sample], match: Match) -> tuple[list[str], dict[str, float]]:
        """The text found for each image, and all other figures."""
        import torch  # not at the top: the config door reads this room's dataclasses and must stay fast

        texts = list(dict.fromkeys(text for sample in samples for text in targets(sample)))
        column = {text: index for index, text in enumerate(texts)}
        own = torch.zeros(len(samples), len(texts), dtype=torch.bool)
        for row, sample in enumerate(samples):
            own[row, [column[text] for text in targets(sample)]] = True
        nearness = match.similarities(samples, texts, self.batch_size)
        for_images = self._rank_again(nearness, match, is_image=True)
        for_texts = self._rank_again(nearness.T, match, is_image=False)
        metrics = _recalls("text", for_images, own) | _recalls("image", for_texts, own.T)
        metrics |= _recalls("itc_text", nearness, own) | _recalls("itc_image", nearness.T, own.T)
        del metrics[self.primary]  # `grade` gives it
        found = [texts[index] for index in for_images.argmax(1).tolist()]
        return found, metrics | {"chance": float(own.float().mean())}

    def _rank_again(self, nearness: Tensor, match: Match, is_image: bool) -> Tensor:
        """Scores of the same shape: of the nearest, judged anew; the others stay behind them, in their order."""
        import torch

        count = min(self.top_k, nearness.shape[1])
        near, columns = nearness.topk(count, dim=1)
        rows = torch.arange(len(nearness))[:, None].expand_as(columns)
        pairs = torch.stack([rows.flatten(), columns.flatten()], 1)
        judged = match.agreement(pairs if is_image else pairs.flip(1), self.batch_size)
        if judged is None:
            return nearness
        scores = judged.view_as(near) + near
        behind = nearness - nearness.max() + scores.min() - 1
        return behind.scatter(1, columns, scores)


def _recalls(name: str, scores: Tensor, own: Tensor) -> dict[str, float]:
    """Share of the rows that have one of their own among the best 1, 5 and 10."""
    best = scores.argsort(dim=1, descending=True, stable=True)
    hits = own.gather(1, best)
    return {f"{name}_recall_{rank}": float(hits[:, :rank].any(1).float().mean()) for rank in _RANKS}
