"""Reader, decoding and processor of mmexp beside the pipeline that transformers suggests, on real photos.

    python experiments/bench_data.py ../shared/data [ROUNDS]

Both get the rows of llava_instruct.json, the photos as files, Llama's tokenizer, CLIP's preprocessing at 336 px
(shorter side, centre crop) and batches of 8 with 576 slots a photo, in one process and with one or two workers.
`mmexp` has the default settings, `mmexp, exact` those of processor.exact_pixels=true. The other pipeline is a torch
Dataset over the parsed JSON with `LlavaProcessor` on the batch; it makes no labels. Rounds of all alternate, so that
other work on the machine meets each; a ratio above 1 means that mmexp is faster.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPImageProcessorPil, LlavaProcessor

from mmexp.data import Collator, LlavaJsonConfig, TrainingData
from mmexp.encoder import ImageTransform
from mmexp.prompt import ChatTemplate, Processor, SegmentTokenizer

BATCH, SIZE, SLOTS = 8, 336, 576
_ROLES = {"human": "USER", "gpt": "ASSISTANT"}


class Rows:
    """The torch Dataset of the other pipeline: a parsed row and its opened picture."""

    def __init__(self, file: Path, root: Path) -> None:
        self.rows, self.root = json.loads(file.read_text()), root

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[str, Image.Image]:
        row = self.rows[index]
        said = [f"{_ROLES[turn['from']]}: {turn['value']}" for turn in row["conversations"]]
        return " ".join(said), Image.open(self.root / row["image"]).convert("RGB")


class HfBatches:
    """Texts and pictures to what the model of transformers takes."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.processor = LlavaProcessor(
            image_processor=image_processor, tokenizer=tokenizer, patch_size=14,
            vision_feature_select_strategy="default", num_additional_image_tokens=1, image_token="<image>",
        )  # fmt: skip

    def __call__(self, entries: list[tuple[str, Image.Image]]) -> Any:
        texts, images = zip(*entries, strict=True)
        how: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        return self.processor(images=list(images), text=list(texts), **how)


def pipelines(data: Path, file: Path, root: Path) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Name to data set and collator; the first one is ours."""
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizers/llama2")
    ours = Processor(
        template=ChatTemplate(name="vicuna", default_system=None, media="first_if_single"),
        tokenizer=SegmentTokenizer(tokenizer),
        slot_lengths={"image": SLOTS},
        transforms={"image": ImageTransform(size_px=SIZE, fit="crop", exact=False)},
        max_length_tokens=4096,
    )
    rows = LlavaJsonConfig(path=str(file), image_root=str(root)).build()
    published = replace(ours, exact=True, transforms={"image": ImageTransform(size_px=SIZE, fit="crop")})
    collate = Collator(pad_id=ours.tokenizer.pad_id, row="padded")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    return {
        "mmexp": (TrainingData(rows, ours), collate),
        "mmexp, exact": (TrainingData(rows, published), collate),
        "transformers": (Rows(file, root), HfBatches(CLIPImageProcessor(**sizes), tokenizer)),
        "transformers, PIL": (Rows(file, root), HfBatches(CLIPImageProcessorPil(**sizes), tokenizer)),
    }


def seconds(dataset: Any, collate: Callable[[Any], Any], workers: int, repeat: int) -> float:
    """Time to take every batch of `repeat` passes; starting the workers is not counted."""
    order = list(range(len(dataset))) * repeat
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    timeout = 60 if workers else 0
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, timeout=timeout)
    stream: Iterator[Any] = iter(loader)
    next(stream)
    began = time.perf_counter()
    for _ in stream:
        pass
    return time.perf_counter() - began


def large(data: Path, folder: Path) -> Path:
    """The same rows with photos of 2,048 pixels, as phones and web crawls have them: the real ones, enlarged."""
    rows = json.loads((data / "annotations/llava_instruct.json").read_text())[:48]
    for row in rows:
        image = Image.open(data / row["image"]).convert("RGB")
        scale = 2048 / max(image.size)
        enlarged = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        enlarged.save(buffer, "JPEG", quality=90)
        target = folder / row["image"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(buffer.getvalue())
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def compare(data: Path, file: Path, root: Path, workers: int, rounds: int, repeat: int) -> Iterator[str]:
    """One line of the table for each of the other pipelines."""
    made = pipelines(data, file, root)
    count = len(made["mmexp"][0]) * repeat
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, (dataset, collate) in made.items():
            times[name].append(seconds(dataset, collate, workers, repeat))
    for name, taken in times.items():
        ratios = [other / one for one, other in zip(times["mmexp"], taken, strict=True)]
        rate, middle = (count - BATCH) / statistics.median(taken), statistics.median(ratios)
        spread = "" if name == "mmexp" else f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        yield f"| {workers} | {name} | {rate:.0f} | {spread} |"


def main(data: Path, rounds: int = 5) -> None:
    """Prints both tables."""
    torch.set_num_threads(1)
    head = "| workers | pipeline | samples/s | mmexp is faster by |\n|---|---|---|---|"
    print(f"Photos of at most 512 px\n{head}", flush=True)
    for workers in (0, 1, 2):
        for line in compare(data, data / "annotations/llava_instruct.json", data, workers, rounds, 2):
            print(line, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = large(data, Path(folder))
        print(f"\nThe same enlarged to 2,048 px\n{head}", flush=True)
        for workers in (0, 2):
            for line in compare(data, file, Path(folder), workers, rounds, 1):
                print(line, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
