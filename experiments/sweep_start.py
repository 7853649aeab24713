"""What does a sweep cost beside the same jobs typed one after the other? Writes sweep_start.md.

    python experiments/sweep_start.py [--jobs 12] [--steps 60] [--rounds 2]

Jobs are the laptop twin of LLaVA-1.5's first stage. In turns, on the same machine: every job by hand, a sweep, and a
sweep with `sweep.warm_start=false`; then the same with one step, which is the start of a job and its end. The world
is rendered and the data looked at before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
COMMON = ("recipe=llava15", "scale=shapes", "stage=llava15/align", "evaluation=none", "logger=none")
WAYS = ("by hand", "a sweep", "a sweep, warm_start=false")


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        call(Path(folder), "trainer.max_steps=1", "run_id=first")
        found = {
            steps: {
                way: [measure(way, Path(folder), options.jobs, steps) for _ in range(options.rounds)] for way in WAYS
            }
            for steps in (1, options.steps)
        }
    write_page(found, options.jobs)


def measure(way: str, folder: Path, num_jobs: int, steps: int) -> float:
    """Seconds for all jobs."""
    settings = f"trainer.max_steps={steps}"
    name = f"{time.time_ns()}"
    began = time.perf_counter()
    if way == WAYS[0]:
        for seed in range(num_jobs):
            call(folder, settings, f"seed={seed}", f"run_id={name}-{seed}")
    else:
        seeds = ",".join(str(seed) for seed in range(num_jobs))
        warm = "false" if way == WAYS[2] else "true"
        call(folder, "-m", settings, f"seed={seeds}", f"sweep.warm_start={warm}", f"sweep.dir={folder}/sweeps/{name}")
    seconds = time.perf_counter() - began
    print(f"{way}, {steps} steps: {seconds:.1f} s", flush=True)
    return seconds


def call(folder: Path, *args: str) -> None:
    """`python -m mmexp.train`."""
    command = [sys.executable, "-m", "mmexp.train", *args, *COMMON, f"paths.outputs={folder}/outputs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def write_page(found: dict[int, dict[str, list[float]]], num_jobs: int) -> None:
    """The table."""
    lines = [
        "# What does a sweep cost beside the same jobs typed one after the other?",
        f"Made by `python experiments/sweep_start.py`: {num_jobs} jobs of LLaVA-1.5's first stage as a laptop twin,",
        f"one at a time on {os.cpu_count()} CPU cores; medians of rounds in turns.",
        "",
        "| steps of a job | way | seconds for all | seconds a job | of those by hand | rounds |",
        "|---|---|---|---|---|---|",
    ]
    for steps, ways in found.items():
        by_hand = statistics.median(ways[WAYS[0]])
        for way, seconds in ways.items():
            own = statistics.median(seconds)
            rounds = ", ".join(f"{each:.1f}" for each in seconds)
            lines.append(f"| {steps} | {way} | {own:.1f} | {own / num_jobs:.2f} | {own / by_hand:.2f} | {rounds} |")
    before = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    notes = before[before.index("## Notes") :] if "## Notes" in before else ""
    PAGE.write_text("\n".join([*lines, "", notes]).rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
