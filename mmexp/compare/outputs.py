"""The table for the terminal, and as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from mmexp.compare.comparison import Comparison
from mmexp.compare.rows import COSTS, Cell, amount, figure, letters_of, p_text, sentence, short, table_rows

_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}  # fmt: skip

_TEX_COSTS = ("train_s", "peak_memory_gb", "tokens_per_image")
"""Costs that a paper's table has room for."""


def terminal_tables(comparison: Comparison) -> list[Table | Text]:
    """Figures, how to read them, tests and costs."""
    parts: list[Table | Text] = [_figures(comparison), Text(sentence(comparison))]
    parts += [_tests(comparison)] if comparison.tests else []
    return [*parts, _costs(comparison)]


def _figures(comparison: Comparison) -> Table:
    """The figures of each group, the best first."""
    rows, letters = table_rows(comparison), letters_of(comparison)
    table = _table(["", "runs"], ["seeds", *("\n".join(reversed(name.split("/", 2))) for name in rows.metrics)])
    for row in rows.body:
        table.add_row(
            letters[row.label],
            Text(row.label.replace(" ", "\n"), style="bold" if row.is_reference else ""),
            str(row.num_seeds),
            *(Text(_plain(cell), style="bold" if cell.best else "") for cell in row.cells),
        )
    return table


def _costs(comparison: Comparison) -> Table:
    """What each group took, as the mean of its runs."""
    rows, letters = table_rows(comparison), letters_of(comparison)
    table = _table([""], [_cost_head(name) for name in rows.costs])
    for row in rows.body:
        table.add_row(letters[row.label], *(amount(value) for value in row.costs))
    return table


def _tests(comparison: Comparison) -> Table:
    """Every paired test."""
    letters = letters_of(comparison)
    table = _table(["", "metric"], ["difference", "95 % interval", "p", "p (Holm)", "samples"])
    for (metric, label), test in comparison.tests.items():
        one = test.difference
        table.add_row(
            f"{letters[label]} - {letters[comparison.reference.label]}",
            Text(short(metric)),
            f"{one.mean:+.3f}",
            f"{one.low:+.3f} to {one.high:+.3f}",
            p_text(one.p),
            p_text(test.adjusted_p),
            f"{one.num_samples:,}",
        )
    return table


def markdown(comparison: Comparison) -> str:
    """A table in Markdown with how to read it, and what has to be known of it."""
    rows = table_rows(comparison)
    head = ["runs", "seeds", *map(short, rows.metrics), *map(_cost_head, rows.costs)]
    lines = [_line(map(_md, head)), _line(["---", *["---:"] * (len(head) - 1)])]
    for row in rows.body:
        cells = [f"**{_plain(cell)}**" if cell.best else _plain(cell) for cell in row.cells]
        lines.append(_line([_md(row.label), str(row.num_seeds), *cells, *map(amount, row.costs)]))
    lines += ["", _md(sentence(comparison))]
    lines += [f"- {_md(note)}" for note in comparison.notes]
    lines += [f"- left out: {_md(name)}: {_md(reason)}" for name, reason in comparison.left_out]
    return "\n".join(lines) + "\n"


def latex(comparison: Comparison) -> str:
    """A booktabs table for a paper; its caption says how to read it."""
    rows = table_rows(comparison)
    costs = [(at, name) for at, name in enumerate(rows.costs) if name in _TEX_COSTS]
    heads = [name.split("/", 2) if name.count("/") > 1 else ["", name, ""] for name in rows.metrics]
    above = ["", "", *(f"{benchmark} {metric}".strip() for _, benchmark, metric in heads), *[""] * len(costs)]
    below = ["", "seeds", *(split for split, _, _ in heads), *(_cost_head(name) for _, name in costs)]
    body = [
        [
            _tex(row.label),
            str(row.num_seeds),
            *map(_tex_cell, row.cells),
            *(_tex(amount(row.costs[at])) for at, _ in costs),
        ]
        for row in rows.body
    ]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_tex(sentence(comparison))}}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(below) - 1)}}}",
        "    \\toprule",
        *(f"    {' & '.join(map(_tex, head))} \\\\" for head in (above, below)),
        "    \\midrule",
        *(f"    {' & '.join(cells)} \\\\" for cells in body),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def csv_text(comparison: Comparison) -> str:
    """Every figure of every run, a line each run: group, seed, directory, settings that differ, figures, costs."""
    file = io.StringIO()
    metrics = comparison.metrics
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["group", "run", "seed", *comparison.differing, *metrics, *COSTS])
    for group in comparison.groups:
        for record in group.records:
            writer.writerow([
                group.label, record.name, record.seed,
                *(record.settings.get(key, "") for key in comparison.differing),
                *(comparison.figures[id(record)].get(name, "") for name in metrics),
                *("" if (value := getattr(record.cost, name)) is None else value for name in COSTS),
            ])  # fmt: skip
    return file.getvalue()


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(header_style="bold")
    for name in left:
        table.add_column(Text(name), overflow="fold", min_width=24 if name == "runs" else None)
    for name in right:
        table.add_column(Text(name, justify="right"), justify="right", overflow="fold")
    return table


def _plain(cell: Cell) -> str:
    interval = cell.interval
    if interval is None:
        return "-"
    spread = "" if interval.half is None else f" ± {figure(interval.half)}"
    return f"{figure(interval.mean)}{spread}{'*' if cell.significant else ''}"


def _tex_cell(cell: Cell) -> str:
    interval = cell.interval
    if interval is None:
        return "--"
    mean = f"\\textbf{{{figure(interval.mean)}}}" if cell.best else figure(interval.mean)
    spread = "" if interval.half is None else f" $\\pm$ {figure(interval.half)}"
    return f"{mean}{spread}{'$^{*}$' if cell.significant else ''}"


def _cost_head(name: str) -> str:
    title, unit = COSTS[name]
    return f"{title} ({unit})" if unit else title


def _line(cells: Sequence[str] | map[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md(text: str) -> str:
    """As it stands, whatever Markdown would make of it."""
    for mark in "\\`*_<>|[]":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text).replace("\n", " ")
