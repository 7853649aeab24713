"""Tables and coloured text for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from mmexp.page import BASELINES, Results, primary_metric
from mmexp.report.entries import Piece


def results_table(results: Results, title: str = "results") -> Table:
    """Every benchmark of every split, its main figure beside the baselines."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("split", "benchmark", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("model", *BASELINES, "over blind", "samples"):
        table.add_column(name, justify="right", no_wrap=True)
    for split, benchmarks in results.items():
        first = split
        for benchmark, metrics in benchmarks.items():
            main = primary_metric(metrics)
            for metric in [key for key in metrics if "/" not in key and key not in (*BASELINES, "num_samples")]:
                beside = metrics if metric == main else {}
                own, blind = metrics[metric], beside.get("blind")
                table.add_row(
                    Text(first),
                    Text(benchmark if metric == main else ""),
                    Text(metric),
                    Text(f"{own:.3f}", style="bold" if metric == main else ""),
                    *(f"{beside[key]:.3f}" if key in beside else "" for key in BASELINES),
                    "" if blind is None else f"{own - blind:+.3f}",
                    f"{int(beside['num_samples'])}" if "num_samples" in beside else "",
                )
                first = ""
        table.add_section()
    return table


def plan_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> Table:
    """Rows as they come; columns in the order of their first appearance, numbers to the right."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        numeric = all(_is_number(row.get(name)) or row.get(name) is None for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(row.get(name))) for name in names))
    return table


def token_view(pieces: Iterable[Piece]) -> Text:
    """What the model reads: supervised text green, slots dim and folded to `[image x576]`."""
    view = Text()
    for piece in pieces:
        view.append(piece.shown, style="dim" if piece.slot else "bold green" if piece.supervised else "")
    return view


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
