"""One sample looked into: the answer, its attention over the picture, soft tokens as words, maps of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mmexp.contracts import Box, Sample, Turn
from mmexp.data import Collator
from mmexp.errors import ConfigError, DataError
from mmexp.inspection.lens import Words, by_embedding, by_head, word
from mmexp.inspection.place import Slots, soft_grid, windows
from mmexp.inspection.trace import greedy_ids, require_causal, trace
from mmexp.prompt.image import load_image

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mmexp.llm import CausalLlm
    from mmexp.model import MultimodalModel, Plan

_MODALITY = "image"


@dataclass(frozen=True, kw_only=True)
class View:
    """One thing that the encoder saw."""

    picture: int
    """Which of the pictures."""
    window: Box
    """What it shows, in shares of the picture; beyond 0 to 1 it is padding."""


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What was found in one sample. M views, N soft tokens and G places of each, A answer tokens."""

    id: str
    prompt: str
    target: str
    """The answer of the data, empty where there is none."""
    answer: str
    tokens: tuple[str, ...]
    """The answer, token by token, with what ends it."""
    pictures: tuple[Image.Image, ...]
    views: tuple[View, ...]
    attention: Tensor
    """float32[A, layers, heads, M, N]: of the position that writes each token, to each soft token."""
    grid: tuple[int, int] | None
    """Rows and columns of the G places that are drawn over a view; None where soft tokens have no place."""
    queries: Tensor | None
    """float32[M, layers, heads, N, G]: of each soft token's query, to each patch; None for connectors without."""
    prefix: Tensor | None
    """float32[M, layers, heads, N]: what the queries take from positions in front of the patches (a CLS token)"""
    near: list[list[tuple[str, float]]]
    """Per soft token (M * N) its nearest words by the cosine with the embedding table."""
    lens: dict[int, list[list[tuple[str, float]]]] = field(default_factory=dict)
    """Per layer (0 is what goes into the first one) and slot its likeliest words by the output head."""
    slot_of: list[int] = field(default_factory=list)
    """Per soft token (M * N) the first slot it stands in, -1 where it is in none."""

    @property
    def over_picture(self) -> Tensor | None:
        """float32[A, layers, heads, M, G]: `attention` over places of the picture; None where it has none.

        Where soft tokens come from queries, each one's attention is shared out as its own query's is, in the mean over
        layers and heads of the connector.
        """
        if self.grid is None:
            return None
        if self.queries is None:
            return self.attention
        return torch.einsum("alhmn,mng->alhmg", self.attention, self.queries.mean((1, 2)))


def require_visible(plan: Plan, where: str = "run.") -> None:
    """Says before any weight is read that a model cannot be looked into.

    Args:
        plan: Of the model.
        where: Begins the config paths of its parts.

    Raises:
        ConfigError: its LLM is no decoder-only one, or it has no pictures.
    """
    if plan.spec.reads_apart or not plan.spec.width:
        found = f"{plan.spec.model_type} reads with an encoder" if plan.spec.width else "this run has no LLM"
        raise ConfigError(found, expected="a decoder-only LLM, whose answer attends to the picture itself",
                          where=f"{where}llm", fix="a run with llm=shapes_lm, vicuna7b, opt2_7b, ...")  # fmt: skip
    if _MODALITY not in plan.inputs:
        raise ConfigError("this run has no image branch", expected="a run with an encoder", where=f"{where}encoder")


def look_inside(
    model: MultimodalModel,
    plan: Plan,
    sample: Sample,
    *,
    max_new_tokens: int = 32,
    num_words: int = 5,
    num_lens_layers: int = 8,
) -> Inside:
    """Lets the model answer the last user turn and looks at it.

    Args:
        model: In eval mode, on its device.
        plan: The plan it was built from.
        sample: With at least one picture; answers behind its last user turn are left out.
        max_new_tokens: Longest answer.
        num_words: Nearest words of each soft token.
        num_lens_layers: Layers whose hidden states become words, evenly spaced, the first and the last included.

    Raises:
        ConfigError: as `require_visible`, and where transformers does not show what is asked for.
        DataError: the sample has no question or no picture, or one that cannot be read.
    """
    require_visible(plan)
    llm = require_causal(model.llm)
    turns = _question(sample)
    item = plan.processor.encode_prompt(turns, id=sample.id, dataset=sample.dataset, meta=sample.meta)
    device = next(model.parameters()).device
    batch = Collator(pad_id=plan.tokenizer.pad_id, row="padded")([item]).to(device)
    with torch.no_grad():
        prompt, soft = model.embed(batch)
        ids = greedy_ids(llm, prompt, _room(plan, prompt, max_new_tokens), lambda found: _is_over(plan, found))
        text = torch.cat([prompt, llm.embed(torch.tensor([ids[:-1]], dtype=torch.long, device=device))], dim=1)
    places = torch.nonzero(batch.slots[_MODALITY][0])[:, 0]
    rows = torch.arange(len(ids), device=device) + prompt.shape[1] - 1
    seen = trace(llm, text, rows, places)
    branch: Any = model.inputs[_MODALITY]
    slots = Slots.of(batch, _MODALITY, soft[_MODALITY].shape[1])
    queries, prefix = _query_maps(branch, batch, plan)
    pictures, views = _pictures(plan, turns, sample)
    return Inside(
        id=sample.id,
        prompt=turns[-1].text.strip(),
        target=_target(sample),
        answer=_text(plan, ids),
        tokens=tuple(word(plan.hf_tokenizer, token) for token in ids),
        pictures=pictures,
        views=views,
        attention=slots.spread(seen.attention),
        grid=plan.inputs[_MODALITY].spec.grid if queries is not None else soft_grid(plan.inputs[_MODALITY]),
        queries=queries,
        prefix=prefix,
        near=_named(plan, by_embedding(llm, soft[_MODALITY].flatten(0, 1), plan.tokenizer.vocab_size, num_words)),
        lens=_lens(llm, plan, seen.hidden, num_words, num_lens_layers),
        slot_of=slots.first_slots(),
    )


def spread_evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` numbers from 0 on, evenly spaced, the first and the last included."""
    wanted = min(max(wanted, 1), count)
    return sorted({round(step * (count - 1) / max(wanted - 1, 1)) for step in range(wanted)})


def _question(sample: Sample) -> tuple[Turn, ...]:
    """The turns up to the last one of the user."""
    last = max((at for at, turn in enumerate(sample.turns) if turn.role == "user"), default=-1)
    turns = sample.turns[: last + 1]
    if not any(medium.modality == _MODALITY for turn in turns for medium in turn.media):
        raise DataError("no question about a picture", expected="a user turn, and a picture in it or before",
                        where=f"sample {sample.id}", fix="ids=[...] of others, or image= and prompt=")  # fmt: skip
    return turns


def _target(sample: Sample) -> str:
    return sample.turns[-1].text.strip() if sample.turns and sample.turns[-1].role == "assistant" else ""


def _room(plan: Plan, prompt: Tensor, wanted: int) -> int:
    """How many tokens of an answer the LLM's positions still hold; at least the first, which needs none of its own."""
    return max(1, min(wanted, plan.spec.max_length_tokens - prompt.shape[1] + 1))


def _is_over(plan: Plan, ids: Sequence[int]) -> bool:
    ends = plan.tokenizer.stop_ids(plan.template) or (plan.hf_tokenizer.eos_token_id,)
    stop = plan.template.stop
    return ids[-1] in ends or bool(stop and stop in plan.hf_tokenizer.decode(ids, skip_special_tokens=True))


def _text(plan: Plan, ids: Sequence[int]) -> str:
    text = plan.hf_tokenizer.decode(ids, skip_special_tokens=True)
    return (text.split(plan.template.stop)[0] if plan.template.stop else text).strip()


def _query_maps(branch: Any, batch: Any, plan: Plan) -> tuple[Tensor | None, Tensor | None]:
    """`Inside.queries` and `Inside.prefix`."""
    look = getattr(branch.connector, "query_maps", None)
    if look is None:
        return None, None
    with torch.no_grad():
        features = branch.features(*batch.encodes(_MODALITY))
        maps = look(features, *(batch.instruction(_MODALITY) or ())).cpu()
    front = plan.inputs[_MODALITY].spec.num_prefix
    return maps[..., front:], maps[..., :front].sum(-1) if front else None


def _pictures(plan: Plan, turns: Sequence[Turn], sample: Sample) -> tuple[tuple[Image.Image, ...], tuple[View, ...]]:
    """The pictures as they are, upright, and what the encoder saw of them."""
    media = [medium for turn in turns for medium in turn.media if medium.modality == _MODALITY]
    pictures = tuple(load_image(medium.source, f"sample {sample.id}", plan.backdrop) for medium in media)
    transform = plan.transforms[_MODALITY]
    views = (
        View(picture=number, window=window)
        for number, picture in enumerate(pictures)
        for window in windows(transform, picture.size, len(media))
    )
    return pictures, tuple(views)


def _lens(llm: CausalLlm, plan: Plan, hidden: Tensor, num_words: int, num_layers: int) -> dict[int, Any]:
    chosen = spread_evenly(len(hidden), num_layers)
    return {at: _named(plan, by_head(llm, hidden[at], plan.tokenizer.vocab_size, num_words)) for at in chosen}


def _named(plan: Plan, words: Words) -> list[list[tuple[str, float]]]:
    pairs = zip(words.ids.tolist(), words.values.tolist(), strict=True)
    return [[(word(plan.hf_tokenizer, at), value) for at, value in zip(*row, strict=True)] for row in pairs]
