"""Embeddings of prompts to answers, for every model of transformers that generates."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.llm.base import Beginning, Sampling


@torch.inference_mode()
def generate_text(
    model: Any,
    embeds: Tensor,
    mask: Tensor,
    tokenizer: Any,
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
    beginning: Beginning | None = None,
) -> list[str]:
    """Answers to B prompts; see `mmexp.llm.base.Llm.generate`.

    Beams are ordered by what they have said only when they are done, so with more than one `on_text` gets the whole
    answer at once.
    """
    beams = sampling.num_beams > 1
    streamer = TextStream(tokenizer, on_text, sampling.stop) if on_text and not beams else None
    settings = _settings(tokenizer, sampling)
    if beginning is not None:
        settings["past_key_values"] = _read(model, embeds, mask, beginning, sampling.num_beams)
    devices = [embeds.device] if embeds.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        ids = model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            streamer=streamer,
            **settings,
        )
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    answers = [(text.split(sampling.stop)[0] if sampling.stop else text).strip() for text in texts]
    if on_text and beams:
        on_text(answers[0])
    return answers


def _read(model: Any, embeds: Tensor, mask: Tensor, beginning: Beginning, num_beams: int) -> Any:
    """The cache of the beginnings, each read once, with a copy for every prompt and beam."""
    rows, seen = embeds[beginning.first, : beginning.num_columns], mask[beginning.first, : beginning.num_columns]
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    cache = model.get_decoder()(
        inputs_embeds=rows, attention_mask=seen, position_ids=positions, use_cache=True
    ).past_key_values
    cache.batch_select_indices(beginning.owners.repeat_interleave(num_beams))
    return cache


def _settings(tokenizer: Any, sampling: Sampling) -> dict[str, Any]:
    """What `generate` of transformers is told; a checkpoint's own defaults decide nothing that stands here."""
    end = list(sampling.stop_ids) or tokenizer.eos_token_id
    settings: dict[str, Any] = {
        "do_sample": sampling.temperature > 0,
        "num_beams": sampling.num_beams,
        "max_new_tokens": sampling.max_new_tokens,
        "repetition_penalty": sampling.repetition_penalty,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    }
    if sampling.min_new_tokens:
        settings["min_new_tokens"] = sampling.min_new_tokens
    if sampling.num_beams > 1:
        settings |= {"length_penalty": sampling.length_penalty, "early_stopping": False}
    if sampling.temperature > 0:
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    if sampling.stop:
        settings |= {"stop_strings": [sampling.stop], "tokenizer": tokenizer}
    return settings


class TextStream:
    """Hands out text as soon as it can no longer change, and nothing from the stop string on."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None], stop: str | None) -> None:
        self.tokenizer, self.on_text, self.stop = tokenizer, on_text, stop
        self.ids: list[int] = []
        self.shown = ""

    def put(self, ids: Tensor) -> None:
        """Takes the next tokens."""
        self.ids += ids.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True).lstrip()
        if self.stop:
            text = text.split(self.stop)[0]
        if not text.endswith("\ufffd") and len(text) > len(self.shown):  # half of a character: wait for the rest
            self.on_text(text[len(self.shown) :])
            self.shown = text

    def end(self) -> None:
        """Called once after the last token."""
