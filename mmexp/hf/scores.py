"""The proof of an export without an LLM: transformers gives pictures and texts the scores that our model gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmexp.contracts import Item, Sample, Text, Turn
from mmexp.data import Collator
from mmexp.hf.verify import differs, picture_of, pixel_differences, reload

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mmexp.hf.retrieval_form import RetrievalForm
    from mmexp.model import MultimodalModel, Plan


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Pictures with a text each, and what our model says of them."""

    turns: tuple[tuple[Turn, ...], ...]
    items: tuple[Item, ...]
    ids: Tensor
    """int64[B, T]"""
    mask: Tensor
    """bool[B, T], false at padding"""
    itc: Tensor
    """float[B, B], a row a picture"""
    itm: Tensor
    """float[2, B, 2]: of each picture with its own text, and with the next one's"""


@dataclass(frozen=True, kw_only=True)
class ScoreAgreement:
    """The largest differences over all pictures and texts."""

    num_probes: int
    itc: float
    """Of similarities, with the same pixels on both sides."""
    itm: float
    """Of logits of matching, with the same pixels."""
    scale: float
    """Largest logit of matching."""
    tolerance: float
    """What `itc`, and `itm / max(1, scale)`, had to stay below."""
    pixels: float
    """Of normalised pixels, ours and those of the exported image processor."""
    mean_pixels: float
    """Mean of the same."""

    def table(self) -> dict[str, str | int]:
        """Rows of the model card."""
        return {
            "pictures with a text compared": self.num_probes,
            "token ids": "equal",
            "largest difference of similarities": f"{self.itc:.2g}",
            "largest difference of matching logits": f"{self.itm:.2g} (largest logit {self.scale:.3g})",
            "difference of normalised pixels": f"{self.pixels:.2g} at most, {self.mean_pixels:.2g} on average",
        }

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.num_probes} pictures with a text: similarities differ by {self.itc:.2g}, matching logits by "
            f"{self.itm:.2g} (largest {self.scale:.3g}), pixels by {self.pixels:.2g} at most and "
            f"{self.mean_pixels:.2g} on average, token ids are equal"
        )


@torch.inference_mode()
def take_scores(plan: Plan, heads: Any, model: MultimodalModel, asked: Sequence[tuple[Turn, ...]]) -> Scores:
    """Runs our model, in eval mode on the CPU, on exchanges of one picture and one answer, which is the text.

    Args:
        plan: Of the model.
        heads: The objective, with the methods of `mmexp.objective.Embedding`.
        model: The model.
        asked: Exchanges.
    """
    items = tuple(plan.processor.encode(Sample(id=f"probe {n}", turns=turns)) for n, turns in enumerate(asked))
    batch = Collator(pad_id=plan.tokenizer.pad_id, row="padded")(items)
    features = heads.features(model, batch)
    ids, mask = heads.texts(batch)
    images, texts = heads.embed_image(model, features), heads.embed_text(model, ids, mask)
    itc = torch.einsum("iqw,tw->itq", images.float(), texts.float()).amax(2)
    itm = [heads.match(model, features, ids.roll(-step, 0), mask.roll(-step, 0)).float() for step in (0, 1)]
    return Scores(turns=tuple(asked), items=items, ids=ids, mask=mask, itc=itc, itm=torch.stack(itm))


@torch.inference_mode()
def compare_scores(folder: Path, form: RetrievalForm, ours: Scores, tolerance: float) -> ScoreAgreement:
    """Reloads the folder with transformers' Auto classes and compares ids, pixels and both kinds of scores.

    Raises:
        CheckpointError: something differs by more than the tolerance; it says what.
    """
    processor, model = reload(folder, form.auto)
    pictures = [picture_of(turns) for turns in ours.turns]
    texts = ["".join(part.text for part in turns[-1].parts if isinstance(part, Text)) for turns in ours.turns]
    inputs = processor(images=pictures, text=texts, padding=True, truncation=True, max_length=form.longest,
                       return_tensors="pt")  # fmt: skip
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if ids.shape != ours.ids.shape or not torch.equal(ids * mask, ours.ids * ours.mask):
        raise differs(f"token ids are {ids.tolist()}, ours {ours.ids.tolist()}", folder)
    own_pixels = torch.cat([torch.stack(item.media["image"]) for item in ours.items])
    pixels = pixel_differences(own_pixels, inputs["pixel_values"].float(), folder)
    own_pixels = own_pixels.to(model.dtype)
    itc = model(pixel_values=own_pixels, input_ids=ids, attention_mask=mask).logits_per_image.float()
    itm = [
        model(own_pixels, ids.roll(-step, 0), mask.roll(-step, 0), use_image_text_matching_head=True).logits_per_image
        for step in (0, 1)
    ]
    found = {"itc": float((itc - ours.itc).abs().max()), "itm": float((torch.stack(itm) - ours.itm).abs().max())}
    scale = float(ours.itm.abs().max())
    if not found["itc"] <= tolerance:
        raise differs(f"similarities differ by {found['itc']:.2g}", folder)
    if not found["itm"] <= tolerance * max(1.0, scale):
        raise differs(f"logits of matching differ by {found['itm']:.2g}, the largest is {scale:.3g}", folder)
    return ScoreAgreement(num_probes=len(texts), scale=scale, tolerance=tolerance, **found, **pixels)
