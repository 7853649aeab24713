"""Data and scripts inside a page."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any


def embedded(value: Any) -> str:
    """JSON that is safe between script tags: no `<`, `>` or `&` in it, whatever the texts hold."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def script_hash(script: str) -> str:
    """SHA-256 of a script, base64, by which a page's Content-Security-Policy lets it through."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
