"""How much of a batch is padding: padded rows in plain order, in LLaVA's groups, and packed.

    python experiments/bench_packing.py ../shared/data [SHARE]

Two sets of rows. `real` are the conversations, captions and chats of the data folder as they are. `mix` has the parts
of LLaVA-1.5's 665K mixture (appendix table 7) in their published proportions, SHARE of its size (default 0.02): each
row is put together from real questions, answers and chats of the folder, with as many turns as the source of that part
has questions for an image. Rows are tokenised with Llama's tokenizer and the Vicuna template, 576 slots an image (or
256, as Qwen-VL), at most 2,048 tokens; no picture is opened. Orders are those of a run on 8 devices with 16 rows each,
as published; `sorted` is what transformers' Trainer does with group_by_length, given the exact lengths.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoTokenizer
from transformers.trainer_pt_utils import get_length_grouped_indices

from mmexp.contracts import Dataset
from mmexp.data import LlavaJsonConfig, OrderSettings, RunSampler, build_order
from mmexp.data.lengths import token_lengths
from mmexp.data.packing import Packer, next_fit
from mmexp.prompt import ChatTemplate, Processor, SegmentTokenizer

ROOT = Path(__file__).resolve().parents[1]
WORLD, MICRO, LIMIT = 8, 16, 2048
Pairs = list[tuple[str, str]]


class Source:
    """Real texts to put rows together from."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        def load(name: str) -> Any:
            return json.loads((folder / name).read_text(encoding="utf-8"))

        self.draw = random.Random(seed)
        talks = [pairs(row) for row in load("text/llava_qa90_conversations.json")]
        self.talk, self.detail, self.reasoning = ([row[at] for row in talks] for at in range(3))
        answers = {
            row["question_id"]: row["answers"][0]["answer"]
            for row in load("metrics/vqa/annotations.json")["annotations"]
        }
        questions = load("metrics/vqa/questions.json")
        questions = questions["questions"] if isinstance(questions, dict) else questions
        self.short = [(row["question"], answers[row["question_id"]]) for row in questions]
        instruct = [pair for row in load("annotations/llava_instruct.json") for pair in pairs(row)]
        self.boxes = [pair for pair in instruct if pair[1].startswith("[")]
        self.captions = [pair for row in load("annotations/llava_pretrain.json") for pair in pairs(row)]
        self.chats = [
            pair for row in load("text/vicuna_dummy_conversations.json") for pair in pairs(row)
        ] + self.reasoning

    def some(self, pool: Pairs, low: int, high: int) -> Pairs:
        """Between `low` and `high` pairs of a pool."""
        return self.draw.choices(pool, k=self.draw.randint(low, high))

    def chat(self) -> Pairs:
        """Turns of a long chat; ShareGPT is cut at the limit, so its lengths reach up to it."""
        words, found = self.draw.lognormvariate(6.2, 0.9), []
        while sum(len(question.split()) + len(answer.split()) for question, answer in found) < words:
            found.append(self.draw.choice(self.chats))
        return found


def pairs(row: dict[str, Any]) -> Pairs:
    """Questions with their answers."""
    said = [turn["value"].replace("<image>", "").strip() for turn in row["conversations"]]
    return list(zip(said[::2], said[1::2], strict=False))


def parts(source: Source) -> list[tuple[str, int, Callable[[], Pairs], bool]]:
    """Name, thousands of rows, turns, whether there is a picture.

    Questions an image: VQAv2 443,757 on 82,783 images; GQA 943,000 on 72,140; OCR-VQA about 5; OKVQA and A-OKVQA one a
    row; RefCOCO below 10 and Visual Genome at most 10 regions a row.
    """
    return [
        ("conversation", 58, lambda: source.some(source.talk, 2, 5), True),
        ("detail", 23, lambda: source.some(source.detail, 1, 1), True),
        ("reasoning", 77, lambda: source.some(source.reasoning, 1, 1), True),
        ("sharegpt", 40, source.chat, False),
        ("vqav2", 83, lambda: source.some(source.short, 3, 8), True),
        ("gqa", 72, lambda: source.some(source.short, 8, 18), True),
        ("okvqa", 9, lambda: source.some(source.short, 1, 1), True),
        ("ocrvqa", 80, lambda: source.some(source.short, 4, 6), True),
        ("aokvqa", 66, lambda: source.some(source.short, 1, 1), True),
        ("textcaps", 22, lambda: source.some(source.captions, 1, 1), True),
        ("refcoco", 48, lambda: source.some(source.boxes, 1, 9), True),
        ("vg", 86, lambda: source.some(source.boxes, 4, 10), True),
    ]


def mix(source: Source, share: float) -> Iterator[dict[str, Any]]:
    """Rows of the mixture."""
    for name, thousands, make, has_picture in parts(source):
        for number in range(round(1000 * thousands * share)):
            turns = []
            for at, (question, answer) in enumerate(make()):
                mark = "<image>\n" if has_picture and not at else ""
                turns += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
            yield {"id": f"{name}-{number}", "conversations": turns} | ({"image": "x.jpg"} if has_picture else {})


def real(folder: Path) -> Iterator[dict[str, Any]]:
    """All conversations of the folder as they are."""
    names = ["annotations/llava_instruct.json", "annotations/llava_pretrain.json"]
    for name in [*names, "text/llava_qa90_conversations.json", "text/vicuna_dummy_conversations.json"]:
        yield from json.loads((folder / name).read_text(encoding="utf-8"))


def measure(dataset: Dataset, processor: Processor, micro: int, **settings: Any) -> tuple[float, float, float]:
    """Share of padding over an epoch, share of the limit that packed rows fill, and samples a row."""
    chosen = OrderSettings(seed=0, micro_batch_size=micro, world_size=WORLD, num_workers=2, cache=CACHE, **settings)
    order, tokens = build_order(dataset, processor, chosen), token_lengths(dataset, processor, CACHE, 2)
    rows = order.num_rows(1)
    positions = used = samples = 0
    for rank in range(WORLD):
        sampler = RunSampler(
            order=order, batch_size=micro, num_micro_batches=rows // (micro * WORLD), rank=rank, world_size=WORLD
        )
        for batch in sampler:
            lengths = tokens[batch]
            counts = next_fit(lengths.tolist(), LIMIT) if chosen.row == "packed" else [1] * len(batch)
            fills = [int(part.sum()) for part in np.split(lengths, np.cumsum(counts)[:-1])]
            positions, used, samples = positions + len(fills) * max(fills), used + sum(fills), samples + len(batch)
    return 1 - used / positions, float(tokens.sum()) / rows / LIMIT, samples / (rows // (micro * WORLD) * micro * WORLD)


def sorted_waste(tokens: np.ndarray, micro: int) -> float:
    """Share of padding when groups of 50 micro-batches over all devices are sorted by exact length."""
    torch.manual_seed(0)
    indices = get_length_grouped_indices(tokens.tolist(), micro * WORLD)
    batches = [tokens[indices[at : at + micro]] for at in range(0, len(indices) - micro + 1, micro)]
    return 1 - sum(int(batch.sum()) for batch in batches) / sum(len(batch) * int(batch.max()) for batch in batches)


def main(folder: Path, share: float) -> None:
    """Prints the tables."""
    fields = yaml.safe_load((ROOT / "conf/template/vicuna_v1.yaml").read_text())
    fields.pop("_target_")
    tokenizer = SegmentTokenizer(AutoTokenizer.from_pretrained(folder / "tokenizers/llama2"))
    for name, rows in {"mix": list(mix(Source(folder), share)), "real": list(real(folder))}.items():
        (CACHE / f"{name}.json").write_text(json.dumps(rows))
        dataset = LlavaJsonConfig(path=str(CACHE / f"{name}.json")).build()
        for slots in (576, 256):
            processor = Processor(
                template=ChatTemplate(**fields),
                tokenizer=tokenizer,
                max_length_tokens=LIMIT,
                slot_lengths={"image": slots},
            )
            started = time.perf_counter()
            tokens = token_lengths(dataset, processor, CACHE, 2)
            rate = len(dataset) / (time.perf_counter() - started)
            shown = ", ".join(f"{np.percentile(tokens, at):.0f}" for at in (5, 25, 50, 75, 95))
            print(
                f"\n{name}, {slots} slots: {len(dataset)} rows, {rate:.0f} rows/s, tokens at 5 25 50 75 95 %: {shown}"
            )
            for limit in (LIMIT, 2 * LIMIT, 4 * LIMIT):
                counts = Packer(lengths=tokens, capacity=limit).pack(np.arange(len(tokens)), 0)[1]
                print(f"rows of {limit} tokens are filled to {tokens.sum() / len(counts) / limit:.1%}")
            for micro in (16, 4) if name == "mix" else (2,):
                kinds: dict[str, dict[str, Any]] = {
                    "padded, shuffled": {},
                    "padded, length": {"order": "length"},
                    "padded, modality_length": {"order": "modality_length"},
                    "packed": {"row": "packed"},
                }
                for kind, settings in kinds.items():
                    waste, fill, samples = measure(dataset, processor, micro, **settings)
                    packed = f" {fill:.1%} of the limit, {samples:.2f} samples a row" if "row" in settings else ""
                    print(f"| {name} | {slots} | {micro} | {kind} | {waste:.1%} |{packed}")
                print(f"| {name} | {slots} | {micro} | padded, sorted | {sorted_waste(tokens, micro):.1%} |")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        CACHE = Path(temporary)
        main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.02)
