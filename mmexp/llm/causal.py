"""Any decoder-only language model that transformers knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mmexp import hub
from mmexp.contracts import LlmSpec
from mmexp.errors import CheckpointError, ConfigError
from mmexp.llm import attention
from mmexp.llm.base import Sampling

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """A decoder-only LLM by hub id or local folder, loaded with `AutoModelForCausalLM`."""

    path: str
    """Hub id or folder of a transformers checkpoint."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer, when it is not beside the weights. With it `mmexp.preview` needs no LLM."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How the weights are stored; a part that trains wants float32."""
    from_scratch: bool = False
    """Takes the architecture of `path` (its config.json) with random weights."""

    def spec(self) -> LlmSpec:
        return spec_of(self._config())

    def load_tokenizer(self) -> Any:
        if self.tokenizer is not None:
            return load_tokenizer(self.tokenizer)
        return _read_tokenizer(hub.resolve(self.path, "llm"), self.path, self.revision)

    def build(self) -> CausalLlm:
        if self.from_scratch:
            return self.empty()
        from transformers import AutoModelForCausalLM

        source = hub.resolve(self.path, "llm")
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source,
                revision=self.revision,
                dtype=getattr(torch, self.dtype),
                attn_implementation=attention.register(),
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise hub.unavailable(source, error, "llm", CheckpointError) from error
        if spec_of(model.config).width != self.spec().width:
            raise CheckpointError(
                f"width {spec_of(model.config).width}", expected=f"{self.spec().width} as planned", where="llm.path"
            )
        return CausalLlm(model)

    def empty(self) -> CausalLlm:
        """The module with random weights on the current default device: `torch.device('meta')` sizes it for free."""
        return empty_llm(self._config(), getattr(torch, self.dtype))

    def _config(self) -> PretrainedConfig:
        from transformers import AutoConfig

        raw = hub.read_config(self.path, self.revision, "llm")
        if "model_type" not in raw:
            raise ConfigError(f"{self.path}: config.json has no model_type", where="llm.path")
        return AutoConfig.for_model(**raw)


def load_tokenizer(source: str, revision: str | None = None) -> Any:
    """The transformers tokenizer of a hub id, or of a folder that need not hold a model.

    Raises:
        ConfigError: written as a folder that does not exist or holds no tokenizer.
        CheckpointError: it cannot be read.
    """
    return _read_tokenizer(_tokenizer_folder(source), source, revision)


def _read_tokenizer(local: str, source: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(local, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise hub.unavailable(source, error, "llm", CheckpointError) from error


def _tokenizer_folder(source: str) -> str:
    """The folder of a tokenizer alone (no config.json is needed), or the hub id as it is.

    Raises:
        ConfigError: written as a folder that does not exist or holds no tokenizer.
    """
    folder = Path(source).expanduser()
    if not hub.is_local(source):
        return source
    if not folder.is_dir():
        raise ConfigError(f"no such folder: {source}", where="llm.tokenizer",
                          fix="check the path, or give a hub id owner/name")  # fmt: skip
    if not any(folder.glob("*token*")) and not any(folder.glob("vocab*")):
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise ConfigError(f"{source} holds {names}", expected="a folder with tokenizer.json or tokenizer_config.json",
                          where="llm.tokenizer")  # fmt: skip
    return str(folder)


def spec_of(config: PretrainedConfig) -> LlmSpec:
    """The spec that a transformers config implies."""
    text = config.get_text_config()
    return LlmSpec(
        width=text.hidden_size,
        vocab_size=text.vocab_size,
        max_length_tokens=getattr(text, "max_position_embeddings", None) or 2**31 - 1,
        model_type=config.model_type,
    )


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
            )
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
            raise ConfigError(
                f"{model.config.model_type} caps its attention logits, which fused attention cannot do",
                expected="an LLM without attention soft-capping",
                where="llm.path",
            )
        self.model = model

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(input_ids)

    def hidden(self, embeds: Tensor, positions: Tensor, segment_lengths: Sequence[Sequence[int]]) -> Tensor:
        return self.model.get_decoder()(
            inputs_embeds=embeds, position_ids=positions, use_cache=False, segment_lengths=segment_lengths
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(hidden)
        if getattr(config, "logits_scaling", None):  # Granite divides
            logits = logits / config.logits_scaling
        if getattr(config, "logit_scale", None):  # Cohere multiplies
            logits = logits * config.logit_scale
        if getattr(config, "final_logit_softcapping", None):  # Gemma
            logits = torch.tanh(logits / config.final_logit_softcapping) * config.final_logit_softcapping
        return logits

    @torch.inference_mode()
    def generate(
        self,
        embeds: Tensor,
        mask: Tensor,
        tokenizer: Any,
        sampling: Sampling,
        on_text: Callable[[str], None] | None = None,
    ) -> list[str]:
        streamer = _Streamer(tokenizer, on_text, sampling.stop) if on_text else None
        settings: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        if sampling.stop:
            settings |= {"stop_strings": [sampling.stop], "tokenizer": tokenizer}
        devices = [embeds.device] if embeds.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            ids = self.model.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                max_new_tokens=sampling.max_new_tokens,
                repetition_penalty=sampling.repetition_penalty,
                eos_token_id=list(sampling.stop_ids) or tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                streamer=streamer,
                **settings,
            )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [(text.split(sampling.stop)[0] if sampling.stop else text).strip() for text in texts]


class _Streamer:
    """Hands out text as soon as it can no longer change, and nothing from the stop string on."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None], stop: str | None) -> None:
        self.tokenizer, self.on_text, self.stop = tokenizer, on_text, stop
        self.ids: list[int] = []
        self.shown = ""

    def put(self, ids: Tensor) -> None:
        self.ids += ids.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True).lstrip()
        if self.stop:
            text = text.split(self.stop)[0]
        if not text.endswith("\ufffd") and len(text) > len(self.shown):  # half of a character: wait for the rest
            self.on_text(text[len(self.shown) :])
            self.shown = text

    def end(self) -> None:
        """Called once after the last token."""
