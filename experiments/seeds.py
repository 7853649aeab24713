"""Mean and spread of finished runs that differ in their seed.

python experiments/seeds.py outputs/llava15/llava15_instruct/*
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def main(runs: list[str]) -> None:
    """Prints a Markdown table of every main figure, its baselines, and the extra caption figure of stage 1."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for run in runs:
        file = Path(run) / "results.json"
        if file.is_file():
            for split, benchmarks in json.loads(file.read_text()).items():
                for benchmark, metrics in benchmarks.items():
                    for metric, value in metrics.items():
                        if "/" not in metric and metric != "num_samples":
                            values[split, benchmark, metric].append(value)
    print("| split | benchmark | metric | mean | lowest | highest | runs |\n|---|---|---|---|---|---|---|")
    for (split, benchmark, metric), found in values.items():
        mean = statistics.fmean(found)
        print(f"| {split} | {benchmark} | {metric} | {mean:.3f} | {min(found):.3f} | {max(found):.3f} | {len(found)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
