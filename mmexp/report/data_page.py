"""The page about a dataset: how many rows have which problem, what it holds, and examples of every problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mmexp.page import data_uri, document, load_thumbnail
from mmexp.whole import write_text


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row with a problem."""

    id: str
    detail: str
    """What is wrong with it."""
    text: str = ""
    """The beginning of its conversation."""
    file: str | None = None
    """Its picture; shown when it can be read."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """All rows with one kind of problem."""

    name: str
    meaning: str
    grave: bool
    """Whether it makes the check fail."""
    count: int
    examples: Sequence[Example]


def write_data_page(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    kinds: Sequence[Kind],
    histograms: Mapping[str, Mapping[str, int]],
) -> Path:
    """Writes one HTML file that asks nothing of the network.

    Args:
        path: The file.
        title: Heading.
        facts: Name and value of each tile.
        kinds: In the order they are shown; empty for flawless data.
        histograms: Per title the count of each range.
    """
    html = document(
        Path(__file__).with_name("data.html"),
        title,
        verdict=_verdict(kinds),
        tiles=_tiles(facts),
        problems=_table(kinds),
        histograms="".join(_histogram(name, counts) for name, counts in histograms.items()),
        examples="".join(map(_section, kinds)) or '<p class="note">Nothing to show.</p>',
    )
    return write_text(path, html)


def _verdict(kinds: Sequence[Kind]) -> str:
    errors = sum(kind.count for kind in kinds if kind.grave)
    warnings = sum(kind.count for kind in kinds if not kind.grave)
    mark = "&#10007;" if errors else "&#10003;"
    words = f"{errors} {'error' if errors == 1 else 'errors'}, {warnings} {'warning' if warnings == 1 else 'warnings'}"
    return f'<p class="meta"><b class="status">{mark} {words}</b></p>'


def _tiles(facts: Mapping[str, str]) -> str:
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="tiles">{tiles}</dl>'


def _table(kinds: Sequence[Kind]) -> str:
    if not kinds:
        return '<p class="note">None found.</p>'
    rows = "".join(
        f'<tr><th><a href="#{escape(kind.name)}">{escape(kind.name)}</a></th><td>{kind.count:,}</td>'
        f"<td>{'error' if kind.grave else 'warning'}</td><td>{escape(kind.meaning)}</td></tr>"
        for kind in kinds
    )
    return f'<table class="kinds"><tr><th>kind</th><th>rows</th><th></th><th>meaning</th></tr>{rows}</table>'


def _histogram(title: str, counts: Mapping[str, int]) -> str:
    top = max(counts.values(), default=0) or 1
    bars = "".join(
        f'<div class="bar model"><span>{escape(name)}</span><i><u style="width:{count / top:.1%}"></u></i>'
        f"<b>{count:,}</b></div>"
        for name, count in counts.items()
    )
    return f"<section><h4>{escape(title)}</h4>{bars}</section>" if counts else ""


def _section(kind: Kind) -> str:
    shown = f", the first {len(kind.examples)} of {kind.count:,}" if kind.count > len(kind.examples) else ""
    cards = "".join(map(_card, kind.examples))
    return f'<h3 id="{escape(kind.name)}">{escape(kind.name)}{shown}</h3><div class="cards">{cards}</div>'


def _card(example: Example) -> str:
    image = load_thumbnail(Path(example.file)) if example.file else None
    if image is not None:
        picture = f'<div class="picture"><img alt="" src="{data_uri(image)}"></div>'
    else:
        picture = f'<div class="noimage">{"unreadable" if example.file else "no"} image</div>'
    file = f"<dt>file</dt><dd>{escape(example.file)}</dd>" if example.file else ""
    text = f"<p>{escape(example.text)}</p>" if example.text else ""
    return (
        f'<article class="card">{picture}<header><span class="kind">{escape(example.id)}</span></header>'
        f"<p>{escape(example.detail)}</p>{text}<dl>{file}</dl></article>"
    )
