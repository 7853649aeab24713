"""Any decoder-only language model that transformers knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmexp.errors import ConfigError
from mmexp.llm import attention
from mmexp.llm.checkpoint import LlmCheckpoint, shares_beginnings, spec_of
from mmexp.llm.generation import generate_text
from mmexp.llm.head import Head
from mmexp.llm.rows import grow
from mmexp.llm.spans import Spans

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from mmexp.contracts import LlmSpec
    from mmexp.llm.base import Beginning, Sampling, Watch


@dataclass(frozen=True, kw_only=True)
class CausalConfig(LlmCheckpoint):
    """A decoder-only LLM by hub id or local folder, loaded with `AutoModelForCausalLM`."""

    def spec(self) -> LlmSpec:
        return spec_of(self.read_config())

    def build(self) -> CausalLlm:
        if self.from_scratch:
            return self.empty()
        from transformers import AutoModelForCausalLM

        width = self.spec().width
        return CausalLlm(self.load(AutoModelForCausalLM, width, attn_implementation=attention.register()))

    def empty(self) -> CausalLlm:
        """The module with random weights on the current default device: `torch.device('meta')` sizes it for free."""
        return empty_llm(self.read_config(), getattr(torch, self.dtype))


def empty_llm(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> CausalLlm:
    """A model of that architecture with fresh weights; the dtype written in the config says how files are stored."""
    from transformers import AutoModelForCausalLM

    return CausalLlm(AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.register()))


class CausalLlm(nn.Module):
    """Wraps a transformers model; see `mmexp.llm.base.Llm` for what each method takes and gives.

    Raises:
        ConfigError: the architecture does not take its attention from transformers' interface, so that samples in one
            row could see each other.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not getattr(model, "_supports_attention_backend", False) or model.config.is_encoder_decoder:
            raise ConfigError(
                f"{model.config.model_type} has its own attention code",
                expected="a decoder-only architecture of transformers with pluggable attention",
                where="llm.path",
                fix="an encoder-decoder is llm._target_=mmexp.llm.Seq2SeqConfig",
            )
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
            raise ConfigError(
                f"{model.config.model_type} caps its attention logits, which fused attention cannot do",
                expected="an LLM without attention soft-capping",
                where="llm.path",
            )
        from mmexp.llm.last_layer import prune_last_layer
        from mmexp.llm.lean import keep_less

        self.model = model
        self._prunes = prune_last_layer(model.get_decoder())
        keep_less(model)

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(input_ids)

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor,
        segment_lengths: Sequence[Sequence[int]],
        prompt_lengths: Sequence[Sequence[int]] = (),
        rows: Tensor | None = None,
        followers: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        used, spans = None, Spans(segment_lengths, embeds.shape[1], followers)
        if rows is not None and self._prunes and len(rows):  # without any row, no key would get its gradient
            used = attention.used_rows(rows, spans)
        hidden = self.model.get_decoder()(
            inputs_embeds=embeds, position_ids=positions, use_cache=False, spans=spans, used=used
        ).last_hidden_state
        if rows is None:
            return hidden
        return hidden[0] if used is not None else hidden.flatten(0, 1).index_select(0, rows)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head.logits(hidden)

    @property
    def head(self) -> Head:
        config = self.model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
        return Head(
            linear=self.model.get_output_embeddings(),
            scale=scale / (getattr(config, "logits_scaling", None) or 1.0),  # Granite divides
            cap=getattr(config, "final_logit_softcapping", None),  # Gemma
        )

    @property
    def shares_beginnings(self) -> bool:
        return shares_beginnings(self.model.config)

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
        return generate_text(self.model, embeds, mask, tokenizer, sampling, on_text, beginning, watch)
