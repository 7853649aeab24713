"""The page of what was found: a single HTML file that asks nothing of the network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mmexp.inspection.colours import css_gradient, palette
from mmexp.inspection.look import Inside
from mmexp.inspection.pack import sample_data
from mmexp.page import document

_HERE = Path(__file__).parent
_QUERIES = (
    "<p>Queries: soft tokens of this connector come from queries, so an answer's attention to each of them is shared "
    "out over the patches as that query's own attention is, in the mean over the connector's layers and heads.</p>"
)


def page_html(
    found: Sequence[Inside], title: str, source: str, layers: tuple[int, ...] | None = None, notes: Sequence[str] = ()
) -> str:
    """The whole page.

    Args:
        found: One for each sample.
        title: Name of the run.
        source: Where the samples come from, in words.
        layers: LLM layers whose heads are shown one by one; None takes as many as there is room for.
        notes: Remarks in front of the samples.
    """
    samples = [sample_data(each, layers) for each in found]
    colours = base64.b64encode(palette().tobytes()).decode("ascii")
    facts = (
        f"{len(samples)} sample{'s' * (len(samples) != 1)}",
        source,
        f"{found[0].attention.shape[1]} layers x {found[0].attention.shape[2]} heads",
    )
    return document(
        _HERE / "page.html",
        f"Inside {title}",
        style=f"{(_HERE / 'page.css').read_text(encoding='utf-8')}.ramp {{ background: {css_gradient()}; }}",
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        data={"palette": colours, "samples": samples},
        summary="".join(f"<span>{escape(fact)}</span>" for fact in facts),
        queries_note=_QUERIES if any(each.queries is not None for each in found) else "",
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in notes),
    )
