"""Writes the language part of the shapes world as it is before training: a small Llama in Llama's format, and the
tokenizer of the part that ships.

    python experiments/start_language.py OUT

A language model this small spends most of its training before it finds out that looking things up pays. So each token
starts by looking at tokens that are like it and adding what they carry: queries equal keys, values times output is a
share of the identity, input and output embeddings are one table (the idea of Trockman and Kolter 2023, Mimetic
Initialization of Self-Attention Layers, with the sign that copies).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, HEADS, LAYERS, HIDDEN, VOCABULARY = 128, 4, 4, 352, 947
QUERY_KEY_SCALE, VALUE_OUTPUT_SCALE, NOISE = 1.0, 0.4, 0.02
SHIPPED = Path(__file__).parents[1] / "mmexp" / "shapes" / "parts" / "language"


def build(seed: int = 0) -> LlamaForCausalLM:
    """The model with its initial weights."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=1024,
            initializer_range=0.04,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            mimic(layer.self_attn)
    return model


def mimic(attention: torch.nn.Module) -> None:
    """Queries equal keys, and values times output is a share of the identity, both up to noise."""

    def near(weight: torch.Tensor) -> torch.Tensor:
        return weight + torch.randn_like(weight) * NOISE

    head = WIDTH // HEADS
    shared = torch.cat([torch.linalg.qr(torch.randn(WIDTH, head))[0].T for _ in range(HEADS)]) * QUERY_KEY_SCALE
    values = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0] * VALUE_OUTPUT_SCALE**0.5
    attention.q_proj.weight.copy_(near(shared))
    attention.k_proj.weight.copy_(near(shared))
    attention.v_proj.weight.copy_(near(values))
    attention.o_proj.weight.copy_(near(values.T))


def main(out: str) -> None:
    """Writes config.json, model.safetensors and the tokenizer to `out`."""
    build().save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / name, out)


if __name__ == "__main__":
    main(sys.argv[1])
