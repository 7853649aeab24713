"""What does one GPU do with LLaVA-1.5 at its published size? Writes gpu.json and gpu.md.

    python experiments/gpu.py                      all
    python experiments/gpu.py steps answers        beside transformers' own class, in one process
    python experiments/gpu.py estimates runs       real commands, and what the doctor says of them

`MMEXP_SHARED` is the folder whose `data` holds pictures, conversations and LLaMA's tokenizer. `--work` (80 GB) gets the
random weights. `traced` and `estimates` are the doctor's and need no GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

FIGURES = Path(__file__).with_suffix(".json")
PARTS = ("models", "steps", "compiled", "traced", "answers", "estimates", "runs")
CPU_PARTS = {"traced", "estimates"}


def main() -> None:
    """Measures the parts that were asked for; those measured before stay."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/mmexp"))
    parser.add_argument("--out", type=Path, default=FIGURES)
    parser.add_argument("--only", default="", help="steps and runs whose names hold this")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script on a CPU")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny and set(options.parts or PARTS) - CPU_PARTS:
        sys.exit("no GPU here; --tiny tries the script on the CPU")
    options.work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    if set(options.parts or PARTS) - CPU_PARTS:
        figures["setting"] = setting(device)
    for part in options.parts or PARTS:
        try:
            for name, found in measured(part, options, device):
                figures.setdefault(part, {})[name] = found
                options.out.write_text(json.dumps(figures, indent=1) + "\n")
        except Exception as error:
            if len(options.parts) == 1:
                raise
            print(f"{part}: {error}", file=sys.stderr, flush=True)
    if not options.tiny and options.out == FIGURES:
        from gpu_page import write_page

        write_page(figures, options.out.with_suffix(".md"))


def measured(part: str, options: argparse.Namespace, device: str) -> Any:
    """Names and figures of one part."""
    import gpu_runs
    import gpu_steps

    cases = gpu_steps.TINY if options.tiny else gpu_steps.CASES
    names = [name for name in gpu_runs.RUNS if options.only in name]
    if part == "models":
        gpu_runs.make_models(options.work / "models", device, options.tiny)
        gpu_runs.make_rows(options.work)
        yield "folder", str(options.work / "models")
    elif part == "steps":
        for name, case in cases.items():
            if options.only in name:
                yield from attempt(name, gpu_steps.steps, name, case, options.rounds, device)
    elif part == "compiled":
        name, case = list(cases.items())[-1]
        names = (gpu_steps.OURS, gpu_steps.COMPILED, gpu_steps.THEIRS)
        yield from attempt(name, gpu_steps.steps, name, case, options.rounds, device, names)
    elif part == "traced":
        for name, case in cases.items():
            if options.only in name:
                yield name, gpu_steps.traced(case)
    elif part == "answers":
        shape = "tiny" if options.tiny else "7B"
        yield shape, gpu_steps.answers(shape, options.rounds, device)
    elif part == "estimates":
        with ThreadPoolExecutor(3) as pool:
            yield from zip(
                names, pool.map(lambda name: gpu_runs.estimate(name, options.work, options.tiny), names), strict=True
            )
    else:
        for name in names:
            yield from attempt(name, gpu_runs.run, name, options.work, options.tiny)


def setting(device: str) -> dict[str, str]:
    """Card and versions."""
    found = {name: version(name) for name in ("torch", "transformers", "lightning", "peft", "bitsandbytes")}
    card = torch.cuda.get_device_name() if device == "cuda" else "none"
    return {"card": card, "python": platform.python_version(), **found}


def attempt(name: str, work: Callable[..., Any], *args: Any) -> Iterator[tuple[str, Any]]:
    """The name and what `work` gives; nothing but a message when it fails, for the others go on."""
    try:
        found = work(*args)
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return
    print(name, {key: value for key, value in found.items() if key not in ("losses", "seconds")}, flush=True)
    yield name, found


if __name__ == "__main__":
    main()
