"""Embeddings of prompts to answers, for every model of transformers that generates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.llm.base import Beginning, Sampling, Watch


@torch.inference_mode()
def generate_text(
    model: Any,
    embeds: Tensor,
    mask: Tensor,
    tokenizer: Any,
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
    beginning: Beginning | None = None,
    watch: Watch | None = None,
) -> list[str]:
    """Answers to B prompts; see `mmexp.llm.base.Llm.generate`.

    Beams are ordered by what they have said only when they are done, so with more than one `on_text` gets the whole
    answer at once.
    """
    beams = sampling.num_beams > 1
    stops = (sampling.stop,) if sampling.stop else ()
    streamer = TextStream(tokenizer, on_text, stops) if on_text and not beams else None
    settings = _settings(tokenizer, sampling)
    if watch is not None:
        settings |= _watched(watch)
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


def _watched(watch: Watch) -> dict[str, Any]:
    """What makes `generate` of transformers show every step to a watch, and end the answers that it ends."""
    from transformers import LogitsProcessorList, StoppingCriteriaList

    def look(_: Tensor, scores: Tensor) -> Tensor:
        watch.look(scores)
        return scores

    def ended(ids: Tensor, _: Any, **kwargs: Any) -> Tensor:
        return watch.take(ids[:, -1])

    return {
        "logits_processor": LogitsProcessorList([look]),
        "stopping_criteria": StoppingCriteriaList([ended]),
    }


class TextStream:
    """Hands out the text of one answer as soon as it can no longer change, and nothing from a stop string on.

    What was handed out at the end is the answer: without white space around it.

    Args:
        tokenizer: Of the LLM.
        on_text: Gets each piece.
        stops: Texts that end an answer.
        shown: What was handed out before by another stream of the same answer.
    """

    def __init__(
        self, tokenizer: Any, on_text: Callable[[str], None], stops: Sequence[str] = (), shown: str = ""
    ) -> None:
        self.tokenizer, self.on_text, self.stops = tokenizer, on_text, tuple(stops)
        self.ids: list[int] = []
        self.shown = shown
        self.is_stopped = False
        """Whether a stop string was said."""

    def put(self, ids: Tensor) -> None:
        """Takes the next tokens."""
        self.add(ids.flatten().tolist())

    def add(self, ids: list[int]) -> None:
        """As `put`, with plain numbers."""
        self.ids += ids
        text = self._text()
        if not text.endswith("\ufffd"):  # half of a character: wait for the rest
            self._show(text[: len(text) - self._num_held(text)])

    def end(self) -> None:
        """Called once after the last token."""
        self._show(self._text())

    def _text(self) -> str:
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        ends = [place for place in map(text.find, self.stops) if place >= 0]
        self.is_stopped = bool(ends)
        return text[: min(ends)] if ends else text

    def _num_held(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        sizes = (size for stop in self.stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return 0 if self.is_stopped else max(sizes, default=0)

    def _show(self, text: str) -> None:
        text = text.strip()  # white space at the end is none of the answer, unless more follows
        if len(text) > len(self.shown):
            self.on_text(text[len(self.shown) :])
            self.shown = text
