"""Writes the language part of the shapes world as it is before training: a small Llama and its tokenizer, as files.

    PYTHONPATH=experiments/oracle python experiments/start_language.py OUT

A language model this small spends most of its training before it finds out that looking things up pays. So it starts
with two habits (the idea of Trockman and Kolter 2023, Mimetic Initialization of Self-Attention Layers, with the sign
that copies): each token looks at tokens that are like it and adds what they carry (queries equal keys, values times
output is a share of the identity, input and output embeddings are one table), and numbers are waves of their value, so
that close numbers are alike.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from word_grid import SHARES, exchange

from mmexp.config import check, compose, conf_dir, registered_targets
from mmexp.shapes import Scene, draw_scene
from mmexp.shapes.rows import align_row, conversation, talk
from mmexp.shapes.scenes import TEXT

WIDTH, HEADS, LAYERS, HIDDEN = 128, 4, 4, 352
QUERY_KEY_SCALE, VALUE_OUTPUT_SCALE, NOISE, SPREAD, KIND = 1.0, 0.4, 0.02, 0.04, 1.5

NUMBERS = (r" ?\[[01]\.\d\d, ", r"[01]\.\d\d", r", [01]\.\d\d", r", [01]\.\d\d\]")
"""How the four edges of a box are cut out of `[0.12, 0.34, 0.56, 0.78]`: each edge has number tokens of its own, so
that a left edge is never taken for a right one."""
EDGES = (" left ", " top ", " right ", " bottom ")
"""What stands before the same four numbers in a record of a thing."""
WORDS = r" ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]+|\s+(?!\S)|\s+"
FREQUENCIES = (0.5, 1.0, 2.0, 4.0)
SPECIAL = ("<pad>", "<s>", "</s>")


def texts(count: int = 4000) -> Iterator[str]:
    """What the tokenizer is trained on: conversations of every kind, and every number in every place."""
    template = check(compose("train", ["template=vicuna_v1"]).cfg, registered_targets([conf_dir()]))
    yield template.parts["template"].system
    for index in range(count):
        scene = draw_scene(0, TEXT, index)
        rng = scene.rng("text")
        draw, records = rng.random(), in_words(scene, rng)
        name, turns = exchange(scene, rng, draw)
        for said in (
            conversation("" if name == "plain" else records, turns),
            align_row(scene)["conversations"],
            conversation("<image>", talk(scene, "instruct", SHARES)[1]),
        ):
            for turn in said:
                yield from (turn["value"], f" USER: {turn['value']}", f" ASSISTANT: {turn['value']}")
    for value in range(0, 101, 2):
        number = f"{value / 100:.2f}"
        yield from [f" [{number}, {number}, {number}, {number}]", *(f"{edge}{number}" for edge in EDGES)] * 50


def in_words(scene: Scene, rng: Random) -> str:
    """The scene written down: `circle left 0.12 red bottom 0.40 small top 0.20 right 0.32; white background`."""
    records = []
    for thing in rng.sample(scene.things, len(scene.things)):
        edges = zip(EDGES, thing.box, strict=True)
        facts = [thing.size, thing.colour, thing.noun, *(f"{side.strip()} {value / 100:.2f}" for side, value in edges)]
        records.append(" ".join(rng.sample(facts, len(facts))))
    records.insert(rng.choice((0, len(records))), f"{scene.background} background")
    return "; ".join(records)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that gives every word and every number one token."""
    edges = rf" ?(?:{'|'.join(edge.strip() for edge in EDGES)}) [01]\.\d\d"
    pattern = "|".join((edges, NUMBERS[0], NUMBERS[3], NUMBERS[2], NUMBERS[1], WORDS))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    backend.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build(words: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """The model with its initial weights."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=1024,
            initializer_range=SPREAD,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            mimic(layer.self_attn)
        order(model.get_input_embeddings().weight, [words.decode([token]) for token in range(len(words))])
    return model


def mimic(attention: Any) -> None:
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


def order(table: torch.Tensor, tokens: list[str]) -> None:
    """Makes numbers waves of their value, each of the four edges of a box in directions of its own."""
    width = 2 * len(FREQUENCIES) + 2
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0].T
    scale = SPREAD * (WIDTH / (len(FREQUENCIES) + KIND**2)) ** 0.5
    for edge, patterns in enumerate(zip(NUMBERS, EDGES, strict=True)):
        own = directions[edge * width : (edge + 1) * width] * scale
        for kind, pattern in enumerate((patterns[0], patterns[1] + NUMBERS[1])):
            ids = [token for token, text in enumerate(tokens) if re.fullmatch(pattern, text)]
            values = torch.tensor([float(re.search(NUMBERS[1], tokens[token])[0]) for token in ids])[:, None]
            angles = 2 * math.pi * values * torch.tensor(FREQUENCIES)
            table[ids] = torch.cat([torch.sin(angles), torch.cos(angles)], 1) @ own[:-2] + KIND * own[kind - 2]


def main(out: str) -> None:
    """Writes config.json, model.safetensors and the tokenizer to `out`."""
    words = tokenizer()
    build(words).save_pretrained(out)
    words.save_pretrained(out)
    print(f"{len(words)} tokens, written to {out}")


if __name__ == "__main__":
    main(sys.argv[1])
