"""The page of `step_time.py`, made from its figures."""

from __future__ import annotations

import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

from step_pair import OURS, RECOMPUTED, THEIRS

TARGETS = {"small_s1_fp32": 1.9, "small_s1_bf16": 2.0, "small_s2_fp32": 2.3, "small_s2_bf16": 2.5, "7b_s2_fp32": 1.6,
           "small_five_s1_fp32": 4.0, "small_five_s2_fp32": 4.0}  # fmt: skip
RECOMPUTED_TARGETS = {"7b_s1_fp32": 1.5, "7b_s2_fp32": 2.0}
HEAD = """# What does a training step cost?
Made by `python experiments/step_time.py`, which says how; it measures nothing that is not exact. `small`: ViT of 12
layers and 384, 224 px in patches of 16, on a Llama of 8 layers and 512, vocabulary 32,000. `7b`: the same Llama, with
head and encoder only a few % of the weights, as in LLaVA-1.5-7B. `s1`: captions, the connector trains; `s2`:
conversations of mixed lengths, connector and LLM train; `mixed`: captions with detailed ones among them; `five`: five
captions a picture, which are one row of processor.row=shared. Beside it transformers' `LlavaForConditionalGeneration`
on padded rows, with its own loss. bf16 is autocast. The ratio of operations is that of the matrix products, attention
and convolutions of both: what a ratio of times would be if neither did anything else; it is
no bound. The lengths of `mixed` were chosen here, to show what padding does; no target goes with them.
"""


def write_page(figures: dict[str, Any], page: Path) -> None:
    """Writes what has been measured so far."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    parts = [HEAD, f"{versions}, one thread, process CPU time.\n"]
    timed = {case: found for case, found in figures.items() if "seconds" in found}
    if timed:
        parts.append(_times(timed))
    if any(RECOMPUTED in found["seconds"] for found in timed.values()):
        parts.append(_recomputed(timed))
    if any(_ablated(found) for found in timed.values()):
        parts.append(_ablations(timed))
    if "memory" in figures:
        parts.append(_memory(figures["memory"]))
    if "head" in figures:
        full, ours = figures["head"]["full"], figures["head"][OURS]
        parts.append(
            "Head and loss besides weights and hidden states, 4,096 positions of which 25 % are supervised, "
            f"32,000 words: all logits with their float copy {full:.0f} MB, ours {ours:.0f} MB, "
            f"1/{full / ours:.1f} (target 1/12).\n"
        )
    if "growth" in figures:
        parts.append(_growth(figures["growth"]))
        plot = page.with_name("step_growth.svg")
        plot.write_text(growth_plot(figures["growth"]), encoding="utf-8")
        parts.append(f"![What a unit costs]({plot.name})\n")
    page.write_text("\n".join(parts), encoding="utf-8")


def ratios(found: dict[str, Any], name: str = OURS, theirs: str = THEIRS) -> list[float]:
    """Per round how many times as long transformers takes as a variant."""
    seconds = found["seconds"]
    return [other / own for other, own in zip(seconds[theirs], seconds[name], strict=True)]


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _times(timed: dict[str, Any]) -> str:
    lines = [
        "| case | rounds | transformers | mmexp | ratio: median (lowest to highest) | target | ratio of operations "
        "| share of the float32 matmul limit | padding of their rows | supervised |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, found in timed.items():
        where = "" if "fp32" in case else ", a CPU with AMX" if found.get("has_bf16_units") else ", no units for bf16"
        theirs, ours = (statistics.median(found["seconds"][name]) for name in (THEIRS, OURS))
        target = TARGETS.get(case, "")
        counted = found.get("operations")  # older figures lack them
        operations = f"{counted[THEIRS] / counted[OURS]:.2f}" if counted else ""
        limit = _spread(found["limit"], ".0%") if "fp32" in case else ""
        lines.append(
            f"| {case}{where} | {len(found['limit'])} | {theirs:.2f} s | {ours:.2f} s "
            f"| {_spread(ratios(found), '.2f')} | {target} | {operations} | {limit} "
            f"| {found['padding']:.0%} | {found['supervised']:.0%} |"
        )
    return "\n".join([*lines, ""])


def _recomputed(timed: dict[str, Any]) -> str:
    """Beside LLaVA's scripts, which train with gradient checkpointing in both stages."""
    lines = ["Beside transformers with gradient checkpointing of the LLM, as LLaVA's scripts train in both stages:", ""]
    for case, found in timed.items():
        if RECOMPUTED in found["seconds"]:
            ratio = _spread(ratios(found, theirs=RECOMPUTED), ".2f")
            lines.append(f"- {case}: {ratio} (target {RECOMPUTED_TARGETS[case]})")
    return "\n".join([*lines, ""])


def _ablated(found: dict[str, Any]) -> list[str]:
    """Variants between ours and transformers' that were timed."""
    names = [name for name in found["seconds"] if name not in (THEIRS, RECOMPUTED)]
    return names if len(names) > 1 else []


def _ablations(timed: dict[str, Any]) -> str:
    cases = {case: found for case, found in timed.items() if _ablated(found)}
    names = _ablated(next(iter(cases.values())))
    lines = ["Without, one after the other (each row has all that stands above it), as ratios to transformers:", ""]
    lines += [f"| variant | {' | '.join(cases)} |", f"|---|{'---|' * len(cases)}"]
    for name in names:
        values = [f"{statistics.median(ratios(found, name)):.2f}" for found in cases.values()]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join([*lines, ""])


def _memory(found: dict[str, dict[str, float]]) -> str:
    lines = [
        "Largest resident memory of the second step (target 0.40), and the share without what stands before the step "
        "(libraries, weights, optimizer), which is nearly the same for both:",
        "",
        "| case | transformers | mmexp | share | before the step | share of the rest |",
        "|---|---|---|---|---|---|",
    ]
    for case, each in found.items():
        before = each["before"]
        share, own = each[OURS] / each[THEIRS], (each[OURS] - before) / (each[THEIRS] - before)
        lines.append(
            f"| {case} | {each[THEIRS]:.0f} MB | {each[OURS]:.0f} MB | {share:.2f} | {before:.0f} MB | {own:.2f} |"
        )
    return "\n".join([*lines, ""])


def _growth(found: dict[str, dict[str, list[float]]]) -> str:
    lines = [
        "Seconds of a forward and backward pass over 1, 2, 4 and 8 times four rows (of 257 tokens of text, or of a "
        "picture and 16 tokens), and what a unit costs at 8 times against 1 (target 0.85 to 1.15). Counted from "
        "one row on, as an earlier version of this script did on another machine, a unit cost 0.76 and 0.77: one row "
        "does not fill matrix products.",
        "",
    ]
    for what, each in found.items():
        medians = {int(n): statistics.median(values) for n, values in each.items()}
        shown = ", ".join(f"{value:.2f}" for value in medians.values())
        lines.append(f"- {what}: {shown}; {medians[8] / 8 / medians[1]:.2f}")
    return "\n".join([*lines, ""])


def growth_plot(found: dict[str, dict[str, list[float]]]) -> str:
    """What a token and a picture cost with 1, 2, 4 and 8 times as many, against 1; the band is 15 % either way."""

    def place(step: int, value: float) -> str:
        return f"{80 + 110 * step},{240 - 160 * value:.1f}"

    band = " ".join([place(0, 1.15), place(3, 1.15), place(3, 0.85), place(0, 0.85)])
    body = [f'<polygon points="{band}" fill="#e8eef5"/>']
    for tick in (0, 0.5, 1, 1.5):
        body.append(f'<text x="66" y="{244 - 160 * tick:.0f}" text-anchor="end">{tick:g}</text>')
        body.append(f'<polyline points="{place(0, tick)} {place(3, tick)}" stroke="#c8ccd0"/>')
    for step, times in enumerate((1, 2, 4, 8)):
        body.append(f'<text x="{80 + 110 * step}" y="262" text-anchor="middle">{times}x</text>')
    for number, (what, each) in enumerate(found.items()):
        colour = ("#1f6fb4", "#c65a11")[number % 2]
        medians = [statistics.median(each[str(n)] if str(n) in each else each[n]) / n for n in (1, 2, 4, 8)]
        line = " ".join(place(step, value / medians[0]) for step, value in enumerate(medians))
        body.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body.append(f'<text x="{90 + 120 * number}" y="20" fill="{colour}">a unit of {what}</text>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 440 275" font-size="13">{"".join(body)}</svg>'
