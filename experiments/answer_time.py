"""What do five questions about a picture cost? Writes answer_time.md.

    python experiments/answer_time.py [--rounds 5]

The small LLaVA of `step_pair.py` in both frameworks, with the same weights: two pictures, five questions of 8 to 24
tokens each, greedy answers of exactly 4 (as in VQA) and 16 tokens with a cache. Beside ours `generate` of
transformers, one prompt at a time, and all ten left-padded in one batch. The answers are
compared before anything is timed. One thread, process CPU time, the ways interleaved, medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from step_pair import SHAPES, Shape, build_ours, build_theirs, counterparts
from torch import Tensor

from mmexp.contracts import IGNORE, Item, MediaRun
from mmexp.data import Collator
from mmexp.llm import Sampling
from mmexp.model.together import Continuations

ANSWERS, PICTURES, QUESTIONS = (4, 16), 2, 5
SHAPE = SHAPES["small"]
OURS, ONE, BATCH = "mmexp, together", "transformers, one by one", "transformers, one batch"


class Numbers:
    """Stands for a tokenizer: an answer is its token ids."""

    pad_token_id = 0

    def __init__(self, length: int, eos_token_id: int) -> None:
        self.length, self.eos_token_id = length, eos_token_id

    def batch_decode(self, ids: Tensor, skip_special_tokens: bool) -> list[str]:
        """Ids as words."""
        return [" ".join(map(str, row[-self.length :])) for row in ids.tolist()]


def main() -> None:
    """Checks, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    ours, theirs = build_ours(SHAPE).eval(), build_theirs(SHAPE).eval()
    for mine, other in counterparts(ours, theirs):
        mine.load_state_dict(other.state_dict(), strict=False)
    table = {length: measure(make_ways(length, SHAPE, ours, theirs), rounds) for length in ANSWERS}
    write(table, rounds)


def measure(
    ways: dict[str, Any], rounds: int, clock: Callable[[], float] = time.process_time, alike: bool = True
) -> dict[str, float]:
    """Median seconds of each way, by `clock`; stops unless they answer alike (as they need not in bfloat16)."""
    answers = {name: way() for name, way in ways.items()}
    if alike and any(each != answers[ONE] for each in answers.values()):
        raise SystemExit("the ways do not answer alike")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = clock()
            way()
            seconds[name].append(clock() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}


def make_ways(length: int, shape: Shape, ours: Any, theirs: Any, device: str = "cpu") -> dict[str, Any]:
    """Each way as a function that answers all questions with so many tokens; both models hold the same weights."""
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    side, slots, numbers = shape.image_px, shape.slots, Numbers(length, shape.vocabulary - 2)
    pixels = torch.randn(PICTURES, 3, side, side, generator=generator)
    words = [torch.randint(3, shape.vocabulary - 2, (draw.randint(8, 24),), generator=generator)
             for _ in range(PICTURES * QUESTIONS)]  # fmt: skip
    head = torch.cat([torch.tensor([1]), torch.zeros(slots, dtype=torch.long)])
    run = MediaRun(modality="image", start=1, length=slots)
    items = [
        Item(id=f"{row}", dataset="", input_ids=head, labels=torch.full_like(head, IGNORE), runs=(run,),
             media={"image": (pixels[row],)})
        for row in range(PICTURES)
    ]  # fmt: skip
    owners = tuple(index // QUESTIONS for index in range(len(words)))
    continuations = Continuations(owners=owners, lengths=(len(head),) * PICTURES, ids=tuple(words))
    sampling = Sampling(max_new_tokens=length, min_new_tokens=length)
    collate = Collator(pad_id=0, row="padded")

    def together() -> list[str]:
        return ours.generate(collate(items).to(torch.device(device)), numbers, sampling, continuations=continuations)

    def generate(indices: list[int]) -> list[str]:
        prompts = [torch.cat([head[:1], torch.full((slots,), shape.vocabulary - 1), words[index]]) for index in indices]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(prompts, batch_first=True, padding_side="left")
        mask = pad([torch.ones_like(each) for each in prompts], batch_first=True, padding_side="left")
        with torch.inference_mode():
            said = theirs.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device),
                pixel_values=pixels[[owners[index] for index in indices]].to(device),
                max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=0,
                eos_token_id=numbers.eos_token_id,
            )  # fmt: skip
        return numbers.batch_decode(said, skip_special_tokens=True)

    everything = list(range(len(words)))
    return {
        OURS: together,
        ONE: lambda: [generate([index])[0] for index in everything],
        BATCH: lambda: generate(everything),
    }


def write(table: dict[int, dict[str, float]], rounds: int) -> None:
    """The table."""
    rows = [
        f"| {length} | {name} | {value:.2f} | {value / seconds[OURS]:.2f} |"
        for length, seconds in table.items()
        for name, value in seconds.items()
    ]
    text = f"""# What do five questions about a picture cost?
Made by `python experiments/answer_time.py`, which says how. {PICTURES} pictures,
{QUESTIONS} questions each, {SHAPE.slots} soft tokens a picture; all ways give the same answers.
Medians of {rounds} rounds, torch {torch.__version__}, transformers {transformers.__version__}, one thread.

| tokens an answer | way | CPU seconds | ours is faster by |
|---|---|---|---|
"""
    Path(__file__).with_suffix(".md").write_text(text + "\n".join(rows) + "\n", encoding="utf-8")
    print(text + "\n".join(rows))


if __name__ == "__main__":
    main()
