"""A batch as pairs of one image and one text: what a loss that compares the two works on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from mmexp.connector import QformerConfig
from mmexp.contracts import Batch
from mmexp.data.collate import EMPTY
from mmexp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.contracts import Gather
    from mmexp.model import MultimodalModel, Plan


def qformer_of(plan: Plan, predicts: bool) -> QformerConfig:
    """The config of the plan's Q-Former.

    Args:
        plan: The plan.
        predicts: Whether text is predicted, and not only read.

    Raises:
        ConfigError: there is none, or it is of another variant; a head that nothing trains would stop several ranks.
    """
    if "image" not in plan.inputs:
        raise ConfigError("no image branch", expected="an encoder", where="objective", fix="encoder=clip_l14")
    if plan.tiling is not None:
        raise ConfigError(f"{plan.tiling}", expected="one view of each picture", where="processor.image_fit",
                          fix="processor.image_fit=squash")  # fmt: skip
    connector = plan.inputs["image"].connector
    wanted = "full" if predicts else "text"
    if not isinstance(connector, QformerConfig) or connector.variant != wanted:
        raise ConfigError(
            getattr(connector, "variant", type(connector).__name__),
            expected=f"a Q-Former that {'predicts text' if predicts else 'reads text, and has no head to predict any'}",
            where="connector",
            fix=f"connector=qformer_{wanted}",
        )
    num_tokens = plan.tokenizer.vocab_size
    if num_tokens > connector.vocab_size:
        raise ConfigError(f"{connector.vocab_size}", expected=f"the {num_tokens} tokens of the tokenizer",
                          where="connector.vocab_size", fix="llm=none, or a larger table")  # fmt: skip
    return connector


def image_features(model: MultimodalModel, batch: Batch) -> Tensor:
    """float[B, P, E] of the images; of none when every sample of the batch was dropped.

    Raises:
        DataError: a sample without an image, or with several.
    """
    branch: Any = model.inputs["image"]
    owners = batch.media_owners.get("image", ())
    if batch.ids == (EMPTY,):
        return branch.features(torch.zeros(1, *branch.spec.item_shape, device=batch.input_ids.device))[:0]
    if owners != batch.ids:
        odd = next((name for name in batch.ids if owners.count(name) != batch.ids.count(name)), batch.ids[0])
        raise DataError(f"{owners.count(odd)} images", expected="one image for each text", where=f"sample {odd}")
    return branch.features(*batch.encodes("image"))


def texts_of(batch: Batch, longest: int) -> tuple[Tensor, Tensor]:
    """int64[B, T] of all tokens beside the slots, and bool[B, T] where there is no padding.

    Raises:
        DataError: a text has more than `longest` tokens.
    """
    device = batch.input_ids.device
    slots = batch.slots.get("image", torch.zeros_like(batch.input_ids, dtype=torch.bool))
    spans = () if batch.ids == (EMPTY,) else batch.spans()
    rows = [batch.input_ids[row, start:end][~slots[row, start:end]] for row, start, end in spans]
    for name, row in zip(batch.ids, rows, strict=False):
        if len(row) > longest:
            raise DataError(f"a text of {len(row)} tokens", expected=f"at most {longest}", where=f"sample {name}",
                            fix="a smaller template.max_answer_tokens")  # fmt: skip
    lengths = torch.tensor([len(row) for row in rows], device=device, dtype=torch.int64)
    mask = torch.arange(max(map(len, rows), default=1), device=device) < lengths[:, None]
    ids = batch.input_ids.new_zeros(mask.shape)
    return (ids.masked_scatter(mask, torch.cat(rows)) if rows else ids), mask


def same_image(batch: Batch, gather: Gather, is_shared: bool) -> tuple[Tensor, int]:
    """bool[B, B of all ranks]: which pairs show the same image; and where the own rows begin.

    Args:
        batch: The own pairs.
        gather: Joins ranks.
        is_shared: Whether equal `image_id` of the rows are one image; otherwise every row has an image of its own.
    """
    device = batch.input_ids.device
    metas = () if batch.ids == (EMPTY,) else batch.meta
    named = [meta.get("image_id") if is_shared else None for meta in metas]
    keys = torch.tensor([0 if name is None else _number(name) for name in named], device=device, dtype=torch.int64)
    everyone, first = gather(keys)
    place = torch.arange(len(everyone), device=device)
    everyone = torch.where(everyone == 0, -1 - place, everyone)
    own = everyone[first : first + len(keys)]
    return own[:, None] == everyone[None], first


def hits(similarity: Tensor, first: int) -> Tensor:
    """Share of rows of float[2, B, N] whose own partner, at `first` and on, is the nearest."""
    if not similarity.numel():
        return similarity.new_zeros(())
    partner = torch.arange(similarity.shape[1], device=similarity.device) + first
    return (similarity.argmax(2) == partner).float().mean()


def draw(similarity: Tensor) -> Tensor:
    """One index a row, the likelier the more similar: float[R, N] to int64[R]."""
    if not len(similarity):
        return torch.zeros(0, dtype=torch.int64, device=similarity.device)
    weights = similarity.softmax(1).nan_to_num(1.0)  # a step that is not finite is left out later, not aborted here
    return torch.multinomial(weights, 1).squeeze(1)


def widen(rows: Tensor, length: int) -> Tensor:
    """[B, T] to [B, length], with zeros behind."""
    return functional.pad(rows, (0, length - rows.shape[1]))


def _number(image_id: Any) -> int:
    """A positive number for an image id of any kind: the published code takes whole numbers only."""
    return int.from_bytes(hashlib.blake2b(str(image_id).encode(), digest_size=8).digest(), "big") >> 1 or 1
