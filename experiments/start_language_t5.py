"""Writes the encoder-decoder language part of the shapes world as it is before training: a small T5, as files.

    python experiments/start_language_t5.py OUT

It has the tokenizer of the decoder-only part and starts with that part's words, so numbers are waves of their value.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

LANGUAGE = Path(__file__).parents[1] / "mmexp" / "shapes" / "parts" / "language"
WIDTH, HEADS, LAYERS, HIDDEN = 128, 4, 3, 352


def build(words: torch.Tensor, seed: int = 0) -> T5ForConditionalGeneration:
    """The model with its initial weights; `words` float[V, D] becomes its embedding, with rows of length sqrt(D)."""
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(words),
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=HIDDEN,
            num_layers=LAYERS,
            num_decoder_layers=LAYERS,
            num_heads=HEADS,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=0,  # pyright: ignore[reportCallIssue]
            tie_word_embeddings=True,  # pyright: ignore[reportCallIssue]
        )
    )
    with torch.no_grad():
        model.shared.weight.copy_(words / words.pow(2).mean().sqrt())
    return model


def main(out: str) -> None:
    """Writes config.json, model.safetensors and the tokenizer to `out`."""
    build(load_file(LANGUAGE / "model.safetensors")["model.embed_tokens.weight"].float()).save_pretrained(out)
    AutoTokenizer.from_pretrained(LANGUAGE).save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1])
