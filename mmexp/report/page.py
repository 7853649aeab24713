"""The report of one run: a single HTML file that asks nothing of the network."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from mmexp.page import (
    BASELINES,
    Points,
    Run,
    document,
    find_image,
    is_validation_curve,
    line_chart,
    load_run,
    primary_metric,
)
from mmexp.report.entries import Entry
from mmexp.report.samples import entry_html, load_groups
from mmexp.report.sheet import contact_sheet
from mmexp.whole import write_text

_NUM_TILES = 12


def write_report(run_dir: Path) -> Path:
    """Writes `report.html`, and `contact_sheet.png` when there are predictions, into the run directory.

    Whatever the run has not produced yet is said to be missing; nothing is required.
    """
    run = load_run(run_dir)
    groups = load_groups(run)
    cards = [replace(entry, title=f"{name} {entry.title}".strip()) for name, group in groups.items() for entry in group]
    if cards:
        contact_sheet(cards, run_dir / "contact_sheet.png")
    name, stage = (str(run.manifest.get(key) or "") for key in ("name", "stage"))
    evaluate = shlex.join(["python", "-m", "mmexp.evaluate", f"run={_near(run_dir)}"])
    html = document(
        Path(__file__).with_name("page.html"),
        " / ".join(filter(None, (name, stage, run_dir.name))),
        heading=escape(" / ".join(filter(None, (name, stage))) or run_dir.name),
        status=_status(run),
        tiles=_tiles(run.manifest),
        invitation="Talk to it:" if _status_of(run) == "finished" else "Talk to it once it has finished:",
        chat=escape(chat_command(run)),
        results="".join(_results(run)) or _missing(f"No evaluation yet: <code>{escape(evaluate)}</code>"),
        curves="".join(_curves(run.series)) or _missing("No metrics were logged."),
        samples="".join(_samples(groups)) or _missing("No predictions yet."),
        details="".join(_details(run)) or _missing("Neither manifest nor config were written."),
    )
    return write_text(run_dir / "report.html", html)


def chat_command(run: Run) -> str:
    """What to type to talk to this run, with an image it was evaluated on when there is one."""
    lines = (line for rows in run.predictions.values() for line in rows[:1])
    images = (find_image(line.get("image"), run.path) for line in lines)
    image = next((path for path in images if path is not None), None)
    words = ["python", "-m", "mmexp.chat", f"run={_near(run.path)}"]
    return shlex.join(words + ([f"image={_near(image)}"] if image is not None else []))


def _near(path: Path) -> str:
    """Relative to the working directory when it lies below it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _status_of(run: Run) -> str:
    return str(run.manifest.get("status") or "status unknown")


def _status(run: Run) -> str:
    status = _status_of(run)
    mark = "&#10003;" if status == "finished" else "&#9888;" if status in ("failed", "interrupted") else "&#8943;"
    parts = [f'<b class="status">{mark} {escape(status)}</b>', f"<span>{escape(run.path.name)}</span>"]
    parts += [
        f"<span>{key} {escape(str(run.manifest[key]))}</span>"
        for key in ("recipe", "seed", "started")
        if run.manifest.get(key) not in (None, "")
    ]
    line = f'<p class="meta">{"".join(parts)}</p>'
    if status != "finished":
        steps = [points[-1][0] for points in run.series.values() if points]
        reached = f" It has reached step {max(steps)}." if steps else ""
        line += f'<p class="note">This run has not finished; figures and curves are preliminary.{reached}</p>'
    return line


def _tiles(manifest: Mapping[str, Any]) -> str:
    """The plan's numbers."""
    facts = _plan_numbers(manifest)[:_NUM_TILES]
    tiles = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(_shown(value))}</dd></div>" for key, value in facts)
    return f'<dl class="tiles">{tiles}</dl>' if tiles else ""


def _plan_numbers(manifest: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What followed from the configuration, and in one line what the stages before it took."""
    derived = manifest.get("derived")
    if not isinstance(derived, Mapping):
        return []
    before = derived.get("before")
    taken = before.items() if isinstance(before, Mapping) else ()
    line = ", ".join(f"{value:,.0f} {'s' if name == 'train_s' else name}" for name, value in taken if _is_number(value))
    return [*_flat({k: v for k, v in derived.items() if k != "before"}), *([("stages before", line)] if line else [])]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _results(run: Run) -> Iterator[str]:
    for split, benchmarks in run.results.items():
        cards = "".join(_benchmark(name, metrics) for name, metrics in benchmarks.items() if primary_metric(metrics))
        if cards:
            yield f'<h3>{escape(split)}</h3><div class="bench">{cards}</div>'


def _benchmark(name: str, metrics: Mapping[str, float]) -> str:
    """Bars of model and baselines, the remaining metrics, and a table of the question types."""
    main = primary_metric(metrics)
    rows = [("model", metrics[main])] + [(key, metrics[key]) for key in BASELINES if key in metrics]
    top = max(1.0, *(value for _, value in rows))
    bars = "".join(
        f'<div class="bar {key}"><span>{key}</span><i><u style="width:{max(value, 0) / top:.1%}"></u></i>'
        f"<b>{value:.3f}</b></div>"
        for key, value in rows
    )
    others = [key for key in metrics if "/" not in key and key not in (main, *BASELINES, "num_samples")]
    extra = " &middot; ".join(f"{escape(key)} {metrics[key]:.3f}" for key in others)
    count = f"{int(metrics['num_samples'])} samples" if "num_samples" in metrics else ""
    return (
        f"<section><h4>{escape(name)} <small>{escape(main)}{', ' if count else ''}{count}</small></h4>{bars}"
        f"{f'<p class=extra>{extra}</p>' if extra else ''}{_types(main, metrics)}</section>"
    )


def _types(main: str, metrics: Mapping[str, float]) -> str:
    kinds = [key.removeprefix(f"{main}/") for key in metrics if key.startswith(f"{main}/")]
    if not kinds:
        return ""
    columns = [(main, "model")] + [(key, key) for key in BASELINES if any(m.startswith(f"{key}/") for m in metrics)]
    head = "".join(f"<th>{label}</th>" for _, label in columns)
    body = "".join(
        f"<tr><th>{escape(kind)}</th>"
        + "".join(
            f"<td>{metrics[f'{key}/{kind}']:.3f}</td>" if f"{key}/{kind}" in metrics else "<td></td>"
            for key, _ in columns
        )
        + "</tr>"
        for kind in kinds
    )
    return f"<details open><summary>by type</summary><table><tr><th>type</th>{head}</tr>{body}</table></details>"


def _curves(series: Mapping[str, Points]) -> Iterator[str]:
    def of(prefix: str) -> dict[str, Points]:
        return {key.removeprefix(prefix): points for key, points in series.items() if key.startswith(prefix) and points}

    losses = {key: points for key, points in of("train/").items() if "loss" in key}
    charts = [
        ("Training loss", losses, "loss (nats per token)", True),
        *((f"{name}, while training", lines, name.split()[-1], False) for name, lines in _validation_curves(series)),
        ("Learning rate per part", of("lr/"), "learning rate", False),
        ("Throughput", of("data/tokens_per_s"), "tokens per second", True),
        ("Step time", of("time/step_s"), "seconds", True),
        ("Waiting for data", of("time/data_wait"), "share of the time", True),
        ("Model FLOPs utilisation", of("time/mfu"), "share of the peak", True),
        ("Gradient norm", of("train/grad_norm"), "norm", True),
    ]
    for title, lines, label, smooth in charts:
        if lines:
            named = {key or title.lower(): points for key, points in lines.items()}
            yield f"<figure><figcaption>{escape(title)}</figcaption>{line_chart(named, label, smooth)}</figure>"


def _validation_curves(series: Mapping[str, Points]) -> list[tuple[str, dict[str, Points]]]:
    """`<benchmark> <metric>` to a line for each split, where evaluations between steps were logged."""
    charts: dict[str, dict[str, Points]] = {}
    for name, points in series.items():
        if is_validation_curve(name) and len(points) > 1:
            _, split, benchmark, metric = name.split("/")
            charts.setdefault(f"{benchmark} {metric}", {})[split] = points
    return list(charts.items())


def _samples(groups: Mapping[str, Iterable[Entry]]) -> Iterator[str]:
    for name, entries in groups.items():
        entries = list(entries)
        boxed = any(entry.target_box for entry in entries)
        key = '<p class="legend"><span class="k target">target box</span>'
        key += '<span class="k predicted">predicted box</span></p>'
        cards = "".join(map(entry_html, entries))
        yield f'<h3>{escape(name)}</h3>{key if boxed else ""}<div class="cards">{cards}</div>'


def _details(run: Run) -> Iterator[str]:
    facts = {key: value for key, value in run.manifest.items() if key != "derived"}
    derived = _plan_numbers(run.manifest)[_NUM_TILES:]
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(_shown(v))}</td></tr>" for k, v in [*derived, *_flat(facts)])
    if rows:
        yield f'<details><summary>Manifest</summary><table class="facts">{rows}</table></details>'
    for title, text in (("Overrides", run.overrides), ("Resolved config", run.config)):
        if text.strip():
            yield f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, keys joined with a dot."""
    if not isinstance(value, Mapping):
        if prefix:
            yield prefix, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key).replace("_", " "))


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _missing(text: str) -> str:
    """A remark in place of a section; `text` is HTML."""
    return f'<p class="note">{text}</p>'
