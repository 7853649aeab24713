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
