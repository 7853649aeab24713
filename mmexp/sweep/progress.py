"""How a run stands and what came out of it, read from its directory and its log."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TAIL_BYTES = 16_384
_MAIN_FIGURES = 8
_LOSS = "train/loss"
_ERROR = re.compile(r"^(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt|Exit|LostProcess)\b.*)")
_LONGEST = 300


@dataclass(frozen=True)
class Pace:
    """Where a run is."""

    step: int
    num_steps: int | None
    loss: float | None


def pace(run: Path) -> Pace | None:
    """Step and loss of a run that trains; None before its first record."""
    record = last_record(run)
    if not record or "step" not in record:
        return None
    return Pace(int(record["step"]), _manifest(run).get("derived", {}).get("num_steps"), record.get(_LOSS))


def is_finished(run: Path) -> bool:
    """Whether the manifest of a run says that it ended well."""
    return _manifest(run).get("status") == "finished"


def last_record(run: Path) -> dict[str, float]:
    """The last whole record of training in metrics.jsonl, with the newest figures of benchmarks where they come after
    it; empty when there is none."""
    found: dict[str, float] = {}
    for line in reversed(_tail(run / "metrics.jsonl").splitlines()):
        try:
            record = json.loads(line)
        except ValueError:  # being written, or cut by the beginning of the tail
            continue
        if isinstance(record, dict):
            found = record | found
            if _LOSS in record:
                break
    return found


def main_figures(run: Path, metric: str | None) -> dict[str, float]:
    """The last loss and the first metric of each benchmark on each split, and `metric` before them."""
    results = _json(run / "results.json")
    found = {} if metric is None or (value := figure(run, metric)) is None else {metric: value}
    for split, benchmarks in results.items():
        for benchmark, values in benchmarks.items():
            name, value = next(iter(values.items()), ("", None))
            if isinstance(value, int | float) and len(found) < _MAIN_FIGURES:
                found[f"{split}/{benchmark}/{name}"] = float(value)
    loss = last_record(run).get(_LOSS)
    return found | ({_LOSS: loss} if loss is not None else {})


def figure(run: Path, metric: str) -> float | None:
    """The value of `metric`: `<split>/<benchmark>/<name>`, an end that only one has, or a key of metrics.jsonl.

    None when there is no such value, or several.
    """
    named = _flat(_json(run / "results.json"))
    fitting = [value for name, value in named.items() if name == metric] or [
        value for name, value in named.items() if name.endswith(f"/{metric}")
    ]
    if len(fitting) == 1:
        return fitting[0]
    value = last_record(run).get(metric)
    return float(value) if isinstance(value, int | float) else None


def figure_names(run: Path) -> list[str]:
    """What `figure` knows of a run by its whole name."""
    return [*_flat(_json(run / "results.json")), *(name for name in last_record(run) if name != "step")]


def reason(log: Path, code: int, begin: int = 0) -> str:
    """Why a process ended with `code`: the last error in its log behind byte `begin`, else its last line."""
    lines = [line.strip() for line in _tail(log, begin).splitlines() if line.strip()]
    errors = [match.group(1) for line in lines if (match := _ERROR.match(line))]
    if lines and lines[-1].startswith("stopped by"):  # what a run says that has saved itself
        return lines[-1].split(";")[0]
    if code > 128 and not errors:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
        return f"ended by {name}" + (", as a machine does that is out of memory" if name == "SIGKILL" else "")
    return (errors or lines or [f"exit code {code}"])[-1][:_LONGEST]


def _flat(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[f"{prefix}{name}"] = float(value)
    return found


def _manifest(run: Path) -> dict[str, Any]:
    return _json(run / "manifest.json")


def _json(file: Path) -> dict[str, Any]:
    """Empty where the file is missing or damaged: a table must not end because a run is broken."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _tail(file: Path, begin: int = 0) -> str:
    try:
        with file.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(begin, stream.tell() - _TAIL_BYTES))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
