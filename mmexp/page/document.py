"""One HTML file that asks nothing of the network: the frame around what a page shows."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

_HERE = Path(__file__).parent


def document(body: Path, title: str, *, style: str = "", script: str = "", data: Any = None, **parts: str) -> str:
    """The whole page.

    Args:
        body: The template of what stands in it, with `$names` of `parts`; `$title` is there as well.
        title: Plain text.
        style: Rules behind those of every page.
        script: The page's own; nothing else may run in it.
        data: What the script reads from the element `data`.
        parts: HTML.
    """
    policy, scripts = "", ""
    if script:
        policy = f"; script-src 'sha256-{_hash(script)}'"
        scripts = f'<script type="application/json" id="data">{_embedded(data)}</script>\n<script>{script}</script>\n'
    return Template((_HERE / "document.html").read_text(encoding="utf-8")).substitute(
        policy=policy,
        title=escape(title),
        style=(_HERE / "style.css").read_text(encoding="utf-8") + style,
        body=Template(body.read_text(encoding="utf-8")).substitute(parts, title=escape(title)),
        scripts=scripts,
    )


def _embedded(value: Any) -> str:
    """JSON that is safe between script tags: no `<`, `>` or `&` in it, whatever the texts hold."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    """SHA-256, base64, by which the Content-Security-Policy lets a script through."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
