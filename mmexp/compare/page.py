"""The page of a comparison: a single HTML file that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from mmexp.compare.answers import answers
from mmexp.compare.charts import Mark, pareto_chart
from mmexp.compare.comparison import Comparison, front, sign
from mmexp.compare.groups import value_of
from mmexp.compare.page_curves import curve_figures
from mmexp.compare.page_sweep import sweep_section
from mmexp.compare.rows import COSTS, Cell, amount, figure, letters_of, p_text, sentence, short, table_rows
from mmexp.page import document
from mmexp.page.curves import line_key

_HERE = Path(__file__).parent
_PARETO = ("train_s", "tokens", "peak_memory_gb", "tokens_per_image")
"""Costs that quality is drawn against."""
_SELECTS = {"benchmark": "benchmark", "a": "first run", "b": "second run", "filter": "show", "type": "type"}
"""What narrows down the samples: element and name."""


def page_html(comparison: Comparison, max_samples: int) -> str:
    """The whole page.

    Args:
        comparison: What it shows.
        max_samples: Of one benchmark, in the last section.
    """
    letters = letters_of(comparison)
    num_runs = sum(len(group.records) for group in comparison.groups)
    return document(
        _HERE / "page.html",
        f"{num_runs} runs in {len(comparison.groups)} groups",
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        data=answers(comparison, list(letters.values()), max_samples),
        summary=f"<span>{escape(sentence(comparison))}</span>",
        notes=_notes(comparison),
        results=_results(comparison, letters) + _all_figures(comparison, letters) + _tests(comparison, letters),
        settings=_settings(comparison, letters),
        curves=curve_figures(comparison, letters),
        costs=_costs(comparison, letters),
        sweep=sweep_section(comparison, letters),
        samples=_samples(comparison),
    )


def scrolling(head: Sequence[str], body: Sequence[str], num_left: int = 1) -> str:
    """A table that scrolls by itself where it is wider than the page. `head` is HTML, `body` rows with their tags."""
    left = "".join(f'<th class="left">{text}</th>' for text in head[:num_left])
    right = "".join(f"<th>{text}</th>" for text in head[num_left:])
    table = f"<thead><tr>{left}{right}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll"><table class="wide">{table}</table></div>'


def named(comparison: Comparison, letters: Mapping[str, str], label: str) -> str:
    """The first cell of a group's row: its line, letter and label."""
    at = next(at for at, group in enumerate(comparison.groups) if group.label == label)
    return f'<td class="label">{line_key(at)}<b>{letters[label]}</b> {escape(label)}</td>'


def _notes(comparison: Comparison) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in comparison.notes)
    if not comparison.left_out:
        return notes
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(reason)}</td></tr>" for name, reason in comparison.left_out)
    count = len(comparison.left_out)
    return (
        f'{notes}<details class="note"><summary>{count} run{"" if count == 1 else "s"} left out</summary>'
        f'<table class="facts">{rows}</table></details>'
    )


def _results(comparison: Comparison, letters: Mapping[str, str]) -> str:
    rows = table_rows(comparison)
    heads = ["runs", "seeds", *(escape("\n".join(reversed(name.split("/", 2)))) for name in rows.metrics)]
    body = [
        f'<tr data-g="{at}">{named(comparison, letters, row.label)}<td>{row.num_seeds}</td>'
        + "".join(map(_cell, row.cells))
        + "</tr>"
        for at, row in enumerate(rows.body)
    ]
    hint = '<p class="legend">Click a row or a line to see it alone.</p>' if len(body) > 1 else ""
    return f'{scrolling(heads, body)}{hint}<button id="reset" class="reset" hidden>show all groups</button>'


def _cell(cell: Cell) -> str:
    if cell.interval is None:
        return "<td>-</td>"
    spread = "" if cell.interval.half is None else f" <small>&plusmn; {figure(cell.interval.half)}</small>"
    star = "*" if cell.significant else ""
    return f"<td{' class=best' * cell.best}>{figure(cell.interval.mean)}{star}{spread}</td>"


def _all_figures(comparison: Comparison, letters: Mapping[str, str]) -> str:
    if len(comparison.metrics) <= len(comparison.primary):
        return ""
    rows = table_rows(comparison, comparison.metrics)
    heads = ["metric", *(letters[row.label] for row in rows.body)]
    body = [
        f'<tr><td class="label">{escape(short(name))}</td>{"".join(_cell(row.cells[at]) for row in rows.body)}</tr>'
        for at, name in enumerate(rows.metrics)
    ]
    return f"<details><summary>every figure, also by type</summary>{scrolling(heads, body)}</details>"


def _tests(comparison: Comparison, letters: Mapping[str, str]) -> str:
    if not comparison.tests:
        return ""
    reference = letters[comparison.reference.label]
    heads = ["groups", "metric", "difference", "95 % interval", "p", "p (Holm)", "samples"]
    body = []
    for (metric, label), test in comparison.tests.items():
        one = test.difference
        body.append(
            f'<tr><td class="left">{letters[label]} &minus; {reference}</td>'
            f'<td class="left">{escape(short(metric))}</td>'
            f"<td{' class=best' * (test.adjusted_p < 0.05)}>{one.mean:+.3f}</td>"
            f"<td>{one.low:+.3f} to {one.high:+.3f}</td><td>{escape(p_text(one.p))}</td>"
            f"<td>{escape(p_text(test.adjusted_p))}</td><td>{one.num_samples:,}</td></tr>"
        )
    return (
        f"<h3>Against {reference}, {escape(comparison.reference.label)}</h3>{scrolling(heads, body, num_left=2)}"
        '<p class="legend">Paired bootstrap over samples (10,000 resamples, each sample the mean of its seeds), Holm '
        "over the groups of a benchmark; bold: below 0.05. It says whether these very runs differ on more samples of "
        "this kind; how much other seeds would differ, the intervals above say.</p>"
    )


def _settings(comparison: Comparison, letters: Mapping[str, str]) -> str:
    if not comparison.differing:
        return '<p class="note">Nothing but the seed.</p>'
    heads = ["runs", *(escape(key.replace(".", ".\N{ZERO WIDTH SPACE}")) for key in comparison.differing)]
    body = [
        f'<tr data-g="{at}">{named(comparison, letters, group.label)}'
        + "".join(f"<td>{escape(value_of(group.settings, key))}</td>" for key in comparison.differing)
        + "</tr>"
        for at, group in enumerate(comparison.groups)
    ]
    return scrolling(heads, body) + '<p class="legend">Everything else in the configurations is equal.</p>'


def _costs(comparison: Comparison, letters: Mapping[str, str]) -> str:
    rows = table_rows(comparison)
    if not rows.costs:
        return '<p class="note">No costs were logged.</p>'
    heads = ["runs", *(escape("\n".join(filter(None, COSTS[name]))) for name in rows.costs)]
    body = [
        f'<tr data-g="{at}">{named(comparison, letters, row.label)}'
        + "".join(f"<td>{amount(value)}</td>" for value in row.costs)
        + "</tr>"
        for at, row in enumerate(rows.body)
    ]
    note = '<p class="legend">Training, tokens and samples count the stages that a run started from.</p>'
    charts = "".join(_pareto(comparison, letters))
    if charts:
        better = "Higher is better." if sign(comparison.main) > 0 else "Lower is better."
        charts = (
            f"<h3>{escape(short(comparison.main))} against cost</h3><div class=curves>{charts}</div>"
            '<p class="legend">Full points are on the Pareto front: no other group is cheaper and at least as good. '
            f"{better}</p>"
        )
    return scrolling(heads, body) + note + charts


def _pareto(comparison: Comparison, letters: Mapping[str, str]) -> Iterator[str]:
    for cost in _PARETO:
        best = front(comparison, cost)
        marks = []
        for at, group in enumerate(comparison.groups):
            interval = comparison.intervals.get((comparison.main, group.label))
            value = getattr(comparison.costs[group.label], cost)
            if interval is not None and value is not None:
                title = f"{group.label}: {figure(interval.mean)} at {amount(value)} {COSTS[cost][1]}"
                marks.append(Mark(group=at, letter=letters[group.label], title=title, x=value, y=interval.mean,
                                  half=interval.half, is_front=group.label in best))  # fmt: skip
        if len({mark.x for mark in marks}) > 1:
            name, unit = COSTS[cost]
            label = f"{name} ({unit})" if unit else name
            chart = pareto_chart(marks, label, comparison.main.split("/", 2)[-1], sign(comparison.main) < 0)
            yield f"<figure><figcaption>{escape(name)}</figcaption>{chart}</figure>"


def _samples(comparison: Comparison) -> str:
    if not comparison.samples:
        return '<p class="note">No predictions that all runs have in common.</p>'
    selects = (
        ("benchmark", "benchmark"),
        ("a", "first run"),
        ("b", "second run"),
        ("filter", "show"),
        ("type", "type"),
    )
    controls = "".join(f'<label>{name}<select id="{key}"></select></label>' for key, name in selects)
    return (
        f'<div id="side-by-side" class="controls">{controls}'
        '<label>text in prompt or answers<input type="search" id="text" autocomplete="off"></label></div>'
        '<div class="pager"><button id="previous">previous</button><button id="next">next</button>'
        '<span id="count" role="status"></span></div>'
        '<p class="legend" id="box-key" hidden><span class="k target">target box</span>'
        '<span class="k predicted">first run</span><span class="k second">second run</span></p>'
        '<div id="cards"></div><noscript><p class="note">This section needs JavaScript.</p></noscript>'
    )
