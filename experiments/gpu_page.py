"""The page of `gpu.py`, made from its figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_steps import COMPILED
from step_pair import OURS

HEAD = """# What does one GPU do with LLaVA-1.5 at its published size?
Made by `python experiments/gpu.py`, which says how, and `make gpu`. Random weights; CLIP ViT-L/14 at 336 px, Llama of
7B (32 layers of 4,096) or 1.3B (24 of 2,048), vocabulary 32,000.
"""


def write_page(figures: dict[str, Any], page: Path) -> None:
    """Writes what has been measured so far; what stands behind the mark `## Notes` stays."""
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    notes = before[before.index("## Notes") :] if "## Notes" in before else ""
    setting = ", ".join(f"{name} {value}" for name, value in figures.get("setting", {}).items())
    parts = [HEAD, f"{setting}.\n"]
    for name, write in {"steps": _steps, "compiled": _steps, "answers": _answers, "runs": _runs}.items():
        if figures.get(name):
            parts.append("\n".join(write(figures, name)) + "\n")
    page.write_text("\n".join([*parts, notes]), encoding="utf-8")


def _steps(figures: dict[str, Any], part: str) -> Iterator[str]:
    if part == "steps":
        yield "## A step beside transformers' own class"
        yield "bf16 autocast, medians of interleaved rounds; memory: the step's most beyond weights and optimizer.\n"
    else:
        yield "## With the LLM compiled (`trainer.compile=[llm]`)\n"
    yield "| case | variant | seconds | times as long as mmexp | memory | the doctor's count |"
    yield "|---|---|---|---|---|---|"
    for case, found in figures[part].items():
        ours = statistics.median(found["seconds"][OURS])
        count = figures.get("traced", {}).get(case, {}).get("memory_gb")
        for name, values in found["seconds"].items():
            own = statistics.median(values)
            is_counted = name == OURS and count is not None
            counted = f"{count:.1f} GB ({count / found['memory_gb'][name] - 1:+.1%})" if is_counted else ""
            yield f"| {case} | {name} | {own:.3f} | {own / ours:.2f} | {found['memory_gb'][name]:.1f} GB | {counted} |"
    yield ""
    for case, found in figures[part].items():
        line = f"- {case}: {found['tokens']:,} tokens, transformers' rows hold {found['padding']:.0%} padding"
        if flops := figures.get("traced", {}).get(case, {}).get("flops"):
            shares = [
                f"{name} {flops / statistics.median(seconds) / found['rate']:.0%}"
                for name, seconds in found["seconds"].items()
                if name in (OURS, COMPILED)
            ]
            line += f"; of a large bf16 product's {found['rate'] / 1e12:.0f} TFLOP/s: {', '.join(shares)}"
        yield f"{line}."


def _answers(figures: dict[str, Any], part: str) -> Iterator[str]:
    yield "## Five questions about each of two pictures, greedy, bf16\n"
    yield "| LLM | tokens an answer | way | seconds | mmexp is faster by |"
    yield "|---|---|---|---|---|"
    for shape, lengths in figures[part].items():
        for length, seconds in lengths.items():
            ours = next(iter(seconds.values()))
            for name, value in seconds.items():
                yield f"| {shape} | {length} | {name} | {value:.2f} | {value / ours:.2f} |"


def _runs(figures: dict[str, Any], part: str) -> Iterator[str]:
    yield "## Real commands (`mmexp.train recipe=llava15`), and what `mmexp.doctor` says of them\n"
    yield "| run | largest memory | the doctor | seconds of each step | tokens a second | share of the card's peak |"
    yield "|---|---|---|---|---|---|"
    for name, estimate in figures.get("estimates", {}).items():
        found = figures[part].get(name)
        if found is None:
            yield f"| {name} | not run | {estimate:.1f} GB | | | |"
            continue
        off = f"{estimate:.1f} GB ({estimate / found['peak_gb'] - 1:+.1%})"
        speed = f"{found['data/tokens_per_s']:,.0f} | {found.get('time/mfu', float('nan')):.0%}"
        steps = ", ".join(f"{each:.2f}" for each in found.get("steps_s", ()))
        yield f"| {name} | {found['peak_gb']:.1f} GB | {off} | {steps} | {speed} |"
