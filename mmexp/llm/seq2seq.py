"""Encoder-decoder language models: what carries no loss is read, what carries loss is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from mmexp.errors import ConfigError
from mmexp.llm.checkpoint import LlmCheckpoint, spec_of
from mmexp.llm.generation import generate_text
from mmexp.llm.head import Head
from mmexp.llm.rows import grow

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from mmexp.contracts import LlmSpec
    from mmexp.llm.base import Beginning, Sampling, Watch


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(LlmCheckpoint):
    """An encoder-decoder LLM (T5, Flan-T5) by hub id or local folder, loaded with `AutoModelForSeq2SeqLM`."""

    dense_act_fn: str | None = None
    """Activation of the feed-forward layers in place of the checkpoint's: BLIP-2 computes Flan-T5's GELU exactly
    (`gelu`) where the checkpoint was trained with an approximation (`gelu_new`)."""

    def spec(self) -> LlmSpec:
        return spec_of(self._config())

    def build(self) -> Seq2SeqLlm:
        if self.from_scratch:
            return self.empty()
        from transformers import AutoModelForSeq2SeqLM

        config = self._config()
        return Seq2SeqLlm(self.load(AutoModelForSeq2SeqLM, spec_of(config).width, config=config))

    def empty(self) -> Seq2SeqLlm:
        """The module with random weights on the current default device."""
        from transformers import AutoModelForSeq2SeqLM

        config = self._config()
        model = AutoModelForSeq2SeqLM.from_config(config, dtype=getattr(torch, self.dtype))
        if not getattr(config, "scale_decoder_outputs", True):  # transformers ties this head until weights are there
            head = model.get_output_embeddings()
            head.weight = nn.Parameter(torch.empty_like(head.weight).normal_(std=config.initializer_factor))
        return Seq2SeqLlm(model)

    def _config(self) -> PretrainedConfig:
        config = self.read_config()
        if not config.is_encoder_decoder:
            raise ConfigError(f"{config.model_type} has a decoder only", expected="an encoder-decoder such as t5",
                              where="llm.path", fix="llm._target_=mmexp.llm.CausalConfig")  # fmt: skip
        if self.dense_act_fn is not None:
            if not hasattr(config, "dense_act_fn"):
                raise ConfigError(f"{config.model_type} has no dense_act_fn", where="llm.dense_act_fn",
                                  fix="llm.dense_act_fn=null")  # fmt: skip
            config.dense_act_fn = self.dense_act_fn
        return config


class Sides(NamedTuple):
    """Where the positions of a batch stand in the encoder and in the decoder, one segment in each row."""

    read: Tensor
    """int64[segments, longest prompt]: flat index of what the encoder reads; 0 where `read_mask` is 0"""
    read_mask: Tensor
    """int64[segments, longest prompt]"""
    fed: Tensor
    """int64[segments, longest answer]: flat index of what the decoder is fed; its first column is the start token"""
    fed_mask: Tensor
    """int64[segments, longest answer]"""
    said: Tensor
    """int64[answer tokens]: flat index where each output of the decoder belongs, in front of what it predicts"""


def sides(lengths: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]], num_columns: int) -> Sides:
    """The two sides of every segment, on the CPU.

    Args:
        lengths: Per row the lengths of its segments.
        prompts: Per row and segment the positions in front of its first target.
        num_columns: T
    """
    read: list[range] = []
    fed: list[range] = []
    for row, (own, before) in enumerate(zip(lengths, prompts, strict=True)):
        for end, length, prompt in zip(accumulate(own), own, before, strict=True):
            start = row * num_columns + end - length
            read.append(range(start, start + prompt))
            fed.append(range(start + prompt - 1, start + length - 1))
    said = torch.tensor([place for places in fed for place in places], dtype=torch.int64)
    return Sides(*_padded(read), *_padded(fed), said)


def _padded(places: Sequence[range]) -> tuple[Tensor, Tensor]:
    longest = max(1, *map(len, places))
    index = torch.tensor([[*own, *[0] * (longest - len(own))] for own in places])
    mask = torch.tensor([[1] * len(own) + [0] * (longest - len(own)) for own in places])
    return index, mask


class Seq2SeqLlm(nn.Module):
    """Wraps a transformers model; see `mmexp.llm.base.Llm` for what each method takes and gives.

    The encoder reads the positions in front of a segment's first target, the decoder writes from there on. Its output
    for a token stands one position in front of that token, as a decoder-only LLM's does, so objectives and scores
    need not know which of the two they train.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(input_ids)

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor,
        segment_lengths: Sequence[Sequence[int]],
        prompt_lengths: Sequence[Sequence[int]],
        rows: Tensor | None = None,
        followers: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        assert not followers, "refused before the model is built: it shares no beginnings"
        both = Sides(*(part.to(embeds.device) for part in sides(segment_lengths, prompt_lengths, embeds.shape[1])))
        flat = embeds.flatten(0, 1)
        start = torch.full_like(both.fed[:, :1], self.model.config.decoder_start_token_id)
        encoded = self.model.get_encoder()(
            inputs_embeds=flat[both.read], attention_mask=both.read_mask
        ).last_hidden_state
        written = self.model.get_decoder()(
            inputs_embeds=torch.cat([self.embed(start), flat[both.fed[:, 1:]]], dim=1),
            attention_mask=both.fed_mask,
            encoder_hidden_states=encoded,
            encoder_attention_mask=both.read_mask,
            use_cache=False,
        ).last_hidden_state
        said = written[both.fed_mask.bool()]
        hidden = torch.zeros_like(flat, dtype=said.dtype).index_copy(0, both.said, said)
        return hidden.view_as(embeds) if rows is None else hidden.index_select(0, rows)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head.logits(hidden)

    @property
    def head(self) -> Head:
        config = self.model.config
        shrinks = getattr(config, "scale_decoder_outputs", False)  # T5 1.0, whose head is its embedding
        return Head(linear=self.model.get_output_embeddings(), scale=config.d_model**-0.5 if shrinks else 1.0)

    @property
    def shares_beginnings(self) -> bool:
        return False

    def add_tokens(self, first: int, count: int) -> None:
        grow(self.model, first, count)

    def generate(
        self,
        embeds: Tensor,
        mask: Tensor,
        tokenizer: Any,
        sampling: Sampling,
        on_text: Callable[[str], None] | None = None,
        beginning: Beginning | None = None,
        watch: Watch | None = None,
    ) -> list[str]:
        assert beginning is None  # the encoder reads a prompt in both directions
        return generate_text(self.model, embeds, mask, tokenizer, sampling, on_text, watch=watch)
