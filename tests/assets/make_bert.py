"""A small BERT in the published format: vocab.txt, tokenizer and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "the", "red", "blue", "green", "circle", "square", "star", "and", "on", "number", "##s", ".", ",")


def make_tokenizer(folder: Path, further: tuple[str, ...] = ()) -> Path:
    """Whole words, one piece for each character, and `further`; lower case, as bert-base-uncased."""
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    characters = [mark for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in (letter, f"##{letter}")]
    vocab = list(dict.fromkeys([*SPECIAL, *WORDS, *further, *characters]))
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="ascii")
    tokenizer: Any = BertTokenizerFast.from_pretrained(str(folder), do_lower_case=True)
    tokenizer.save_pretrained(str(folder))
    return folder


def make_bert(
    folder: Path, width: int, num_layers: int, num_heads: int, ffn_width: int, vocab_size: int, num_positions: int = 512
) -> Path:
    """Random weights of a BERT with its head for masked words."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=ffn_width,
        vocab_size=vocab_size,
        max_position_embeddings=num_positions,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder
