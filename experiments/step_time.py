"""What a training step costs in time and memory, beside transformers' own LLaVA.

    python experiments/step_time.py                        all cases, then step_time.md
    python experiments/step_time.py small_s2_fp32 head     some cases; the figures of others stay
    python experiments/step_time.py --rounds 7 small_s1_bf16

Both run in one process on the same weights, samples and optimizer, in turns whose order alternates; one thread, process
CPU time, warm-up first. A case is timed only after losses agree to 1e-6 and gradients to 1e-5 (in float32), every
ablation too. The matmul limit is the time that the step's own matrix products would take at the speed of a float32
product of 1024 x 1024 matrices in the same round. Memory is VmHWM of the second step, one process a variant.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from step_pair import (
    ABLATIONS,
    OURS,
    RECOMPUTED,
    SHAPES,
    THEIRS,
    Step,
    build_ours,
    build_theirs,
    counterparts,
    freeze,
    make_item,
    make_items,
    make_loss,
)
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mmexp.llm.head import Head

FIGURES = Path(__file__).with_name("step_time.json")
BATCH = {1: 8, 2: 8}


class Case(NamedTuple):
    """What is timed."""

    shape: str
    stage: int
    low: bool = False
    """Whether under autocast to bfloat16."""
    texts: int = 1
    """Texts about each picture."""
    mixed: bool = False
    """Whether captions of mixed lengths."""


TIMED = {
    "small_s1_fp32": Case("small", 1),
    "small_s1_bf16": Case("small", 1, low=True),
    "small_mixed_s1_fp32": Case("small", 1, mixed=True),
    "small_s2_fp32": Case("small", 2),
    "small_s2_bf16": Case("small", 2, low=True),
    "7b_s1_fp32": Case("7B-shaped", 1),
    "7b_s2_fp32": Case("7B-shaped", 2),
    "small_five_s1_fp32": Case("small", 1, texts=5),
    "small_five_s2_fp32": Case("small", 2, texts=5),
}


def require_exact(models: dict[str, nn.Module], losses: dict[str, Callable[[], torch.Tensor]], pairs: Any) -> None:
    """Stops unless every variant has transformers' loss and gradients."""
    expected = losses[THEIRS]()
    expected.backward()
    for name in losses.keys() - {THEIRS, RECOMPUTED}:
        models[OURS].zero_grad()
        loss = losses[name]()
        loss.backward()
        distance = abs(loss.item() - expected.item())
        if distance > 1e-6 * expected.item():
            sys.exit(f"{name} is not exact: loss {loss.item()}, {THEIRS} {expected.item()}; nothing was timed")
        for mine, other in pairs:
            theirs = dict(other.named_parameters())
            for key, weight in mine.named_parameters():
                if weight.requires_grad and theirs[key].grad is not None:
                    wanted = theirs[key].grad
                    error = float((weight.grad - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))
                    if error > 1e-5:
                        sys.exit(f"{name} is not exact: gradient of {key} differs by {error:.1e}; nothing was timed")
    for model in models.values():
        model.zero_grad()


def clock(work: Callable[[], Any]) -> float:
    """Process CPU seconds."""
    started = time.process_time()
    work()
    return time.process_time() - started


def operations_of(work: Callable[[], Any]) -> int:
    """Floating-point operations of its matrix products, attention and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def has_bf16_units() -> bool:
    """Whether the CPU multiplies matrices of bfloat16 faster than it would after casting them."""
    file = Path("/proc/cpuinfo")
    return file.is_file() and "amx_bf16" in file.read_text()


def product_rate() -> float:
    """Floating-point operations a second of a large float32 product."""
    left, right = torch.ones(1024, 1024), torch.ones(1024, 1024)
    return 4 * 2 * 1024**3 / clock(lambda: [left @ right for _ in range(4)])


def timed(case: str, rounds: int, names: list[str]) -> dict[str, Any]:
    """Seconds of every round and variant, and the share of the matmul limit that ours reaches."""
    shape_name, stage, low, texts, mixed = TIMED[case]
    shape = SHAPES[shape_name]
    items = make_items(shape, stage, BATCH[stage] if texts == 1 else BATCH[stage] // 2, texts=texts, mixed=mixed)
    models: dict[str, nn.Module] = {THEIRS: build_theirs(shape), OURS: build_ours(shape)}
    pairs = counterparts(models[OURS], models[THEIRS])
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict(), strict=False)
    for model in models.values():
        freeze(model, stage)
    own = {name: models[THEIRS if name in (THEIRS, RECOMPUTED) else OURS] for name in names}
    require_exact(models, {name: make_loss(name, own[name], shape, items, False) for name in names}, pairs)
    steps = {name: Step(own[name], make_loss(name, own[name], shape, items, low)) for name in names}
    for step in steps.values():
        step()
    operations = {name: operations_of(steps[name]) for name in (THEIRS, OURS)}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    shares = []
    for number in range(rounds):
        rate = product_rate()
        for name in names if number % 2 else reversed(names):
            seconds[name].append(clock(steps[name]))
        shares.append(operations[OURS] / rate / seconds[OURS][-1])
        print(case, number, {name: round(values[-1], 3) for name, values in seconds.items()}, f"{shares[-1]:.0%}")
    lengths = [len(item.input_ids) for item in items]
    return {
        "seconds": seconds,
        "limit": shares,
        "operations": operations,
        "padding": 1 - sum(lengths) / (len(lengths) * max(lengths)),
        "supervised": sum(item.num_supervised for item in items) / sum(lengths),
    }


def peak_of(work: Callable[[], Any]) -> float:
    """Largest resident memory while `work` runs, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def memory_of(name: str, shape_name: str, stage: int, low: bool, what: str) -> float:
    """MB of the second step of one variant in this process: the most (`peak`), or what stands before it (`before`)."""
    shape = SHAPES[shape_name]
    model = build_theirs(shape) if name == THEIRS else build_ours(shape)
    freeze(model, stage)
    step = Step(model, make_loss(name, model, shape, make_items(shape, stage, BATCH[stage]), low))
    step()
    if what == "before":  # libraries, weights, optimizer; freed blocks go back to the system first
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return _status("VmRSS")
    return peak_of(step)


def head_memory(kind: str, vocabulary: int = 32_000, tokens: int = 4096) -> float:
    """MB that head and loss need besides weights and hidden states; a quarter of the positions is supervised."""
    torch.manual_seed(0)
    linear, hidden = nn.Linear(512, vocabulary, bias=False), torch.randn(tokens, 512, requires_grad=True)
    labels = torch.randint(0, vocabulary, (tokens,)).masked_fill(torch.arange(tokens) % 4 != 0, -100)

    def full() -> None:
        functional.cross_entropy(linear(hidden).float(), labels, reduction="sum").backward()

    def ours() -> None:
        rows = (labels != -100).nonzero().squeeze(1)
        Head(linear=linear).loss(hidden[rows], labels[rows], 256).backward()

    linear(hidden[:8]).sum().backward()  # gradients and buffers of the libraries exist
    before = _status("VmRSS")
    return peak_of(full if kind == "full" else ours) - before


def apart(*arguments: Any) -> float:
    """The figure of a measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(kind: str, *arguments: str) -> float:
    """What `apart` asks for."""
    if kind == "head":
        return head_memory(arguments[0])
    name, shape, stage, low = arguments
    return memory_of(name, shape, int(stage), low == "True", kind)


def growth(rounds: int) -> dict[str, Any]:
    """Seconds of a forward and backward pass over 1, 2, 4 and 8 times four rows of text alone, or of a picture each.

    Four rows are a small micro-batch; fewer do not fill matrix products. The optimizer is left out: its time follows
    from the weights alone, and would make eight times as much look cheap.
    """
    shape, found = SHAPES["small"], {}
    model = build_ours(shape)
    freeze(model, 2)
    for what, words, has_picture in (("tokens", 256, False), ("pictures", 16, True)):
        generator = torch.Generator().manual_seed(0)
        items = [make_item(shape, words, 1, has_picture, False, f"s{n}", generator) for n in range(32)]
        losses = {n: make_loss(OURS, model, shape, items[: 4 * n], False) for n in (1, 2, 4, 8)}
        passes = {n: partial(_forward_backward, model, loss) for n, loss in losses.items()}
        for each in passes.values():
            each()
        found[what] = {n: [clock(each) for _ in range(rounds)] for n, each in passes.items()}
    return found


def _forward_backward(model: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
    loss().backward()
    model.zero_grad(set_to_none=True)


def main() -> None:
    """Measures the cases that were asked for and writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", help="small_s1_fp32, ..., memory, head, growth")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ablations", action="store_true", help="time the steps between ours and padded rows too")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        print(measure(*options.measure))
        return
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    names = [THEIRS, *ABLATIONS] if options.ablations else [THEIRS, OURS]
    for case in options.cases or [*TIMED, "memory", "head", "growth"]:
        if case == "memory":
            figures[case] = {
                each: {name: apart("peak", name, *found[:3]) for name in (THEIRS, OURS)}
                | {"before": apart("before", OURS, *found[:3])}
                for each, found in TIMED.items()
                if found.texts == 1 and not found.mixed
            }
        elif case == "head":
            figures[case] = {kind: apart("head", kind) for kind in ("full", OURS)}
        elif case == "growth":
            figures[case] = growth(options.rounds)
        else:
            figures[case] = timed(case, options.rounds, names + ([RECOMPUTED] if case.startswith("7b") else []))
            figures[case]["has_bf16_units"] = has_bf16_units()
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
        print(case, "done")
    from step_page import write_page

    write_page(figures, FIGURES.with_suffix(".md"))


if __name__ == "__main__":
    main()
