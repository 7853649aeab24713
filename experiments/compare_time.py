"""How long the page of a comparison takes: 50 runs with 200 samples each, built, and opened in a headless browser.

    python experiments/compare_time.py [FOLDER]

Writes run directories with drawn pictures below FOLDER (a temporary one is removed), runs the command as a user would,
and writes experiments/compare_time.md.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.browser import browser, find_browser
from tests.compare.runs import CONFIG, make_run

NUM_SAMPLES, NUM_SEEDS, NUM_OPENINGS = 200, 2, 5
GRID = {"lr": (0.0005, 0.001, 0.002, 0.004, 0.008), "depth": (1, 2, 3, 4, 5)}


def write_runs(folder: Path) -> int:
    """25 settings with two seeds; quality rises with depth and has its best learning rate in the middle."""
    pictures = [_picture(folder / "pictures" / f"{at}.jpg", at) for at in range(NUM_SAMPLES)]
    for number, (lr, depth, seed) in enumerate(itertools.product(*GRID.values(), range(NUM_SEEDS))):
        random = np.random.default_rng(number)
        skill = 0.35 + 0.06 * depth - 0.05 * abs(np.log2(lr / 0.002)) + 0.02 * random.standard_normal()
        right = random.random(NUM_SAMPLES) < skill
        stage = CONFIG["stage"] | {"lr": lr, "batch_size": 8 * (1 + number // NUM_SEEDS % 2)}
        run = make_run(
            folder / "runs" / f"r{number:02d}", scores=[float(one) for one in right], seed=seed, step_s=0.05 * depth,
            config={"connector": CONFIG["connector"] | {"depth": depth}, "stage": stage},
            overrides=[f"connector.depth={depth}", f"stage.lr={lr}", f"stage.batch_size={stage['batch_size']}"],
            answers=[f"answer {at if one else random.integers(99)} at length" for at, one in enumerate(right)],
        )  # fmt: skip
        file = run / "predictions" / "heldout_vqa.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        rows = (json.dumps(line | {"image": str(name)}) for line, name in zip(lines, pictures, strict=True))
        file.write_text("\n".join(rows) + "\n")
        steps = np.arange(10, 2001, 10)
        losses = 4 * np.exp(-steps / (300 / skill)) + 1 - skill + 0.1 * random.standard_normal(len(steps))
        fixed = {"time/step_s": 0.05 * depth, "memory/peak_gb": 1.0 + 0.1 * depth, "data/tokens_per_s": 9000.0,
                 "data/samples_per_s": 90.0, "data/media_per_s": 90.0}  # fmt: skip
        log = (
            {"step": int(step), "train/loss": float(loss), **fixed} for step, loss in zip(steps, losses, strict=True)
        )
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    return NUM_SEEDS * math.prod(map(len, GRID.values()))


def _picture(file: Path, seed: int) -> Path:
    """640 x 480 with noise, as heavy as a photo."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(60, 200, (480, 640, 3)).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((100, 100, 400, 400), fill=tuple(map(int, random.integers(0, 255, 3))))
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=85)
    return file


def measure(folder: Path) -> str:
    """The study's text."""
    num_runs = write_runs(folder)
    page = folder / "compare.html"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mmexp.compare", str(folder / "runs"), f"out={page}"], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    built = time.perf_counter() - began
    opened = "no browser here"
    if find_browser() is not None:
        with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as tab:
            tab.size(1280, 900)
            opened = f"{median(tab.open(page) for _ in range(NUM_OPENINGS)):.2f} s (median of {NUM_OPENINGS})"
    return (
        "# How long does the page of a comparison take?\n"
        f"Made by `python experiments/compare_time.py`: {num_runs} runs (25 settings, 2 seeds) with {NUM_SAMPLES} "
        "samples each, a picture of 640 x 480 each.\n\n"
        "| what | measured | target |\n|---|---|---|\n"
        f"| the whole command, Python's start included | {built:.1f} s | 20 s |\n"
        f"| opening until scripts have run and the page is laid out, headless Chromium | {opened} | 2 s |\n"
        f"| size of the file | {page.stat().st_size / 1e6:.1f} MB | |\n"
    )


def main() -> None:
    text = ""
    if len(sys.argv) > 1:
        text = measure(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            text = measure(Path(folder))
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
