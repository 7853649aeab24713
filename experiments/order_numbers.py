"""Orders the numbers of a language part: writes a copy in which the embeddings of `0.00` to `1.00` start anew as
waves of their value, so that close numbers have close embeddings (and, as the tables are tied, close logits).

    python experiments/order_numbers.py FOLDER OUT

Each number is one token of this tokenizer. Learnt one by one, they are a hundred unrelated words: after 9,000 steps the
part still could not say which of two is larger.
"""

from __future__ import annotations

import math
import re
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NUMBER = re.compile(r"(?P<kind> \[|, )(?P<value>[01]\.\d\d)")
FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


def order(table: torch.Tensor, numbers: dict[int, tuple[str, float]]) -> None:
    """Changes the rows of `numbers` (token id to kind and value) in place; their mean and their spread stay."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(table.shape[1], 2 * len(FREQUENCIES)))[0].T
    for kind in {kind for kind, _ in numbers.values()}:
        ids = [token for token, (own, _) in numbers.items() if own == kind]
        values = torch.tensor([numbers[token][1] for token in ids])[:, None]
        angles = 2 * math.pi * values * torch.tensor(FREQUENCIES)
        fade = torch.tensor(FREQUENCIES).clamp(min=1) ** -0.5
        waves = torch.cat([torch.sin(angles) * fade, torch.cos(angles) * fade], 1) @ basis
        mean = table[ids].mean(0)
        spread = (table[ids] - mean).norm(dim=1).mean() / waves.norm(dim=1).mean()
        table[ids] = mean + (waves - waves.mean(0)) * spread


def main(folder: str, out: str) -> None:
    """Reads a checkpoint and writes the changed one."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    numbers = {}
    for token in range(len(tokenizer)):
        found = NUMBER.fullmatch(tokenizer.decode([token]))
        if found:
            numbers[token] = found["kind"], float(found["value"])
    with torch.no_grad():
        order(model.get_input_embeddings().weight, numbers)
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(folder) / name, out)
    print(f"{len(numbers)} numbers ordered")


if __name__ == "__main__":
    main(*sys.argv[1:3])
