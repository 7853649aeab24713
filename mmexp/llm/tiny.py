"""A two-layer random Llama with a byte tokenizer: what tests use. It reads no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmexp.llm.causal import CausalLlm, empty_llm
from mmexp.llm.checkpoint import spec_of

if TYPE_CHECKING:
    from transformers import LlamaConfig

    from mmexp.contracts import LlmSpec


@dataclass(frozen=True, kw_only=True)
class TinyLlmConfig:
    """Random weights from a fixed seed, so that two builds are the same model."""

    width: int = 32
    """D"""
    max_length_tokens: int = 4096
    """Longest sequence."""
    seed: int = 0
    """Seed of the random weights."""

    def spec(self) -> LlmSpec:
        return spec_of(self._config())

    def load_tokenizer(self) -> Any:
        """One token per byte, and `<s>`, `</s>`, `<pad>`."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")

    def build(self) -> CausalLlm:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.empty()

    def empty(self) -> CausalLlm:
        """The module with random weights on the current default device."""
        return empty_llm(self._config())

    def _config(self) -> LlamaConfig:
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=259,
            max_position_embeddings=self.max_length_tokens,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
