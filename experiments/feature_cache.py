"""What an epoch of stage 1 costs when the features of the frozen encoder are there already.

    python experiments/feature_cache.py                    all cases, then feature_cache.md
    python experiments/feature_cache.py mlp --rounds 7     one case; the figures of others stay

Shapes, weights and samples are those of `step_time.py`: `small`, captions of 8 to 32 tokens, the connector trains. An
epoch is 8 JPEG files of 640 x 480 in one step, from the file to the optimizer. All variants of a case run in one
process, in turns whose order alternates; one thread, process CPU time, warm-up first. Nothing is timed before the loss
with kept features is bit-equal to ours without, and within 1e-6 of transformers'. A kept picture is paid
for as at the start of a second run: its file is hashed, the shard opened and its checksum compared, in every round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from step_pair import (
    OURS,
    SHAPES,
    THEIRS,
    Step,
    build_ours,
    build_theirs,
    counterparts,
    freeze,
    make_item,
    make_loss,
)
from torch import nn
from transformers import CLIPImageProcessor

from mmexp.connector import QformerConfig, ResamplerConfig
from mmexp.contracts import Item, Medium, Turn
from mmexp.data.cache import FeatureStore
from mmexp.data.content import forget_files
from mmexp.encoder import ImageTransform
from mmexp.engine.features import keep
from mmexp.prompt.media import SampleMedia

PAGE, FIGURES = (Path(__file__).with_suffix(suffix) for suffix in (".md", ".json"))
FILLING, KEPT = "mmexp, filling", "mmexp, kept features"
BATCH, NUM_PICTURES = 8, 8
FEW = {
    "qformer": QformerConfig(num_queries=32, width=384, num_layers=4, num_heads=6, ffn_width=1536),
    "resampler36": ResamplerConfig(num_queries=36),
    "resampler16": ResamplerConfig(num_queries=16),
}
"""Connectors with few soft tokens."""
CASES = {"mlp": 2.3, **dict.fromkeys(FEW, 2.4)}
"""Case to the ratio that is wanted: over transformers, or over our own uncached epoch where there are few tokens."""
HEAD = """# What are kept features worth?
Made by `python experiments/feature_cache.py`, which says how; nothing is timed that is not exact. Stage 1 of `small` (a
ViT of 12 layers and 384 at 224 px in patches of 16, a Llama of 8 layers and 512, vocabulary 32,000, float32). `mlp` has
196 soft tokens a picture, `qformer` (4 layers of 384) 32, `resampler36` and `resampler16` what they say. Wanted: with
the MLP at least 2.3 times transformers, with few soft tokens at least 2.4 times our own epoch without kept features.
`reading` goes from JPEG files to what the model is given, `steps` from there to the optimizer; `filling` also writes
the features. Ratios are medians of rounds with the lowest and highest, of process CPU time on a machine that others
load at the same time.
"""


class Cell:
    """One encoder, connector and LLM in all variants, on the same pictures."""

    def __init__(self, case: str, folder: Path) -> None:
        self.shape, self.folder = SHAPES["small"], folder
        ours = build_ours(self.shape)
        branch: Any = ours.inputs["image"]
        num_slots = self.shape.slots
        if case in FEW:
            torch.manual_seed(0)
            branch.connector = FEW[case].build(branch.spec, self.shape.width)
            num_slots = FEW[case].num_soft_tokens(branch.spec)
        self.models: dict[str, nn.Module] = {OURS: ours, KEPT: ours}
        if case not in FEW:
            theirs = build_theirs(self.shape)
            for mine, other in counterparts(ours, theirs):
                mine.load_state_dict(other.state_dict(), strict=False)
            self.models[THEIRS] = theirs
        else:
            self.models[FILLING] = ours
        for model in {id(model): model for model in self.models.values()}.values():
            freeze(model, 1)
        self.encoder, self.stored = branch.encoder.eval(), folder / "kept"
        self.files = photos(folder, NUM_PICTURES)
        generator = torch.Generator().manual_seed(0)
        words = [8 + 24 * number // NUM_PICTURES for number in range(NUM_PICTURES)]
        blank = [
            make_item(self.shape, each, 1, True, True, f"s{n}", generator, num_slots) for n, each in enumerate(words)
        ]
        self.items = [replace(item, media={}) for item in blank]
        self.transform, self.processor = ImageTransform(size_px=224, exact=False), their_processor()
        self.now: list[Item] = []
        self.steps = {name: Step(model, self._loss(name)) for name, model in self.models.items()}

    def _loss(self, name: str) -> Callable[[], torch.Tensor]:
        kind = name if name == THEIRS else OURS
        return lambda: make_loss(kind, self.models[name], self.shape, self.now, False)()

    def read(self, name: str, number: int, store: FeatureStore) -> None:
        """The samples of a micro-batch, with pictures or features, become `now`."""
        chosen = range(number * BATCH, (number + 1) * BATCH)
        if name == THEIRS:
            pictures = [Image.open(self.files[index]).convert("RGB") for index in chosen]
            values = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
            self.now = [replace(self.items[i], media={"image": (values[i - chosen[0]],)}) for i in chosen]
            return
        self.now = []
        for index in chosen:
            medium = Medium(source=str(self.files[index]))
            reader = SampleMedia((Turn(role="user", parts=(medium,)),), "", {"image": self.transform})
            loaded = reader.load(medium, None if name == OURS else store)
            named = {} if name == OURS else {"keys": {"image": (loaded.key,)}, "hits": {"image": (loaded.hit,)}}
            self.now.append(replace(self.items[index], media={"image": (loaded.values,)}, **named))

    def fresh_store(self, name: str) -> FeatureStore:
        """As a process finds it that has just started; an empty one to be filled."""
        forget_files()
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / "new" if name == FILLING else self.stored
        return FeatureStore(folder, 1e12)

    def epoch(self, name: str) -> tuple[float, float]:
        """CPU seconds of reading, and of steps with what is kept of them."""
        reading = stepping = 0.0
        store, outputs = self.fresh_store(name), list[torch.Tensor]()
        hook = self.encoder.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
        for number in range(NUM_PICTURES // BATCH):
            started = time.process_time()
            self.read(name, number, store)
            read = time.process_time()
            self.steps[name]()
            if name == FILLING:
                keys = [item.keys["image"][0] for item in self.now]
                keep(store, outputs.pop(), keys, [False] * BATCH, None)
                store.flush()
            reading, stepping = reading + read - started, stepping + time.process_time() - read
        hook.remove()
        return reading, stepping

    def fill(self) -> int:
        """Keeps all features as training would; bytes of one picture."""
        store = FeatureStore(self.stored, 1e12)
        for number in range(NUM_PICTURES // BATCH):
            self.read(FILLING, number, store)
            values = torch.stack([item.media["image"][0] for item in self.now])
            with torch.no_grad():
                features = self.encoder(values)
            keep(store, features, [item.keys["image"][0] for item in self.now], [False] * BATCH, None)
            store.flush()
        return store.bytes_written // NUM_PICTURES

    def require_exact(self) -> None:
        """Stops unless kept features give our loss to the bit, and transformers' to 1e-6; warms every variant up."""
        losses = {}
        for name in (OURS, KEPT, FILLING, THEIRS):
            if name not in self.models:
                continue
            pixels = OURS if name == THEIRS else name  # the two read JPEG files a little differently
            self.read(pixels, 0, self.fresh_store(name))
            torch.manual_seed(0)  # a Q-Former has dropout
            loss = self.steps[name].loss()
            loss.backward()
            self.steps[name].optimizer.zero_grad(set_to_none=True)
            losses[name] = loss.item()
        theirs = losses.get(THEIRS, losses[OURS])
        if losses[KEPT] != losses[OURS] or abs(theirs - losses[OURS]) > 1e-6 * theirs:
            sys.exit(f"not exact: {losses}; nothing was timed")


def photos(folder: Path, count: int) -> list[Path]:
    """JPEG files with about as much detail as photographs."""
    files, draw = [], np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize(
            (640, 480), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(small).astype(np.int16) + draw.integers(-12, 13, (480, 640, 3))
        files.append(folder / f"{number}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def their_processor() -> CLIPImageProcessor:
    """CLIP's own, for 224 px."""
    return CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})


def measure(case: str, rounds: int, seconds: dict[str, list[tuple[float, float]]]) -> Iterator[dict[str, Any]]:
    """After every round, per variant its seconds of reading and of steps in all of them, `seconds` included."""
    with tempfile.TemporaryDirectory() as folder:
        cell = Cell(case, Path(folder))
        size = cell.fill()
        cell.require_exact()
        names = list(cell.models)
        for number in range(rounds):
            for name in names if number % 2 else reversed(names):
                seconds.setdefault(name, []).append(cell.epoch(name))
            print(case, number, {name: round(sum(each[-1]), 2) for name, each in seconds.items()}, flush=True)
            yield {"seconds": seconds, "bytes": size}


def ratios(seconds: dict[str, Any], name: str, base: str, part: slice = slice(None)) -> list[float]:
    """Per round how many times as long `base` takes as `name`."""
    return [sum(b[part]) / sum(m[part]) for b, m in zip(seconds[base], seconds[name], strict=True)]


def rows_of(case: str, found: dict[str, Any]) -> Iterator[str]:
    """Lines of the table."""
    seconds = found["seconds"]
    for name, each in seconds.items():
        reading, steps = (statistics.median(part) for part in zip(*each, strict=True))
        cells = [case, name, str(len(each)), f"{reading:.2f} s", f"{steps:.2f} s"]
        for base in (THEIRS, OURS):
            has = base in seconds and name != base and name != THEIRS
            cells.append(_spread(ratios(seconds, name, base)) if has else "")
            cells.append(_spread(ratios(seconds, name, base, slice(1, 2))) if has else "")
        yield f"| {' | '.join(cells)} |"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def verdict(case: str, found: dict[str, Any]) -> str:
    """What was wanted, and what the cache weighs."""
    base = OURS if case in FEW else THEIRS
    reached = statistics.median(ratios(found["seconds"], KEPT, base))
    met = "met" if reached >= CASES[case] else "missed"
    return f"- {case}: {reached:.2f} over {base}, wanted {CASES[case]}: {met}; {found['bytes'] / 1e3:.0f} kB a picture."


def main() -> None:
    """Measures the cases that were asked for and writes the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--more", action="store_true", help="add to the rounds that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    for case in options.cases or CASES:
        before = figures[case]["seconds"] if options.more and case in figures else {}
        for found in measure(case, options.rounds, before):
            figures[case] = found
            FIGURES.write_text(json.dumps(figures) + "\n")
            write_page(figures)


def write_page(figures: dict[str, Any]) -> None:
    """Writes what has been measured so far."""
    lines = [f"torch {version('torch')}, transformers {version('transformers')}.\n"]
    lines.append("| case | variant | rounds | reading | steps | epoch over transformers | steps over transformers "
                 "| epoch over mmexp | steps over mmexp |")  # fmt: skip
    lines.append("|---|---|---|---|---|---|---|---|---|")
    shown = {case: figures[case] for case in CASES if case in figures}
    lines += [row for case, found in shown.items() for row in rows_of(case, found)]
    lines += ["", *(verdict(case, found) for case, found in shown.items())]
    PAGE.write_text(HEAD + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
