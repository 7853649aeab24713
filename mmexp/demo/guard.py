"""What stands between the network and Gradio: the page's own requests and no others, and a rule for browsers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

_RULE = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'self'; form-action 'self'"
)
"""What browsers may load and where they may send: this address alone, whatever is in the page."""
_HEADERS = ((b"content-security-policy", _RULE.encode()), (b"referrer-policy", b"same-origin"))
_PAGE = re.compile(
    r"GET /(|config|theme\.css|manifest\.json|favicon\.ico|login|logout|(assets|static|svelte)/.*"
    r"|gradio_api/(file=.*|heartbeat/\w+|queue/data|upload_progress))"
    r"|POST /(login|gradio_api/(queue/join|upload|cancel|reset))"
)
"""Method and path of what the page asks for; Gradio has more, such as calls by name, proxies and histories."""
_CALL = "/gradio_api/queue/join"
_MOST_BYTES = 2**20
"""Of a call: words and settings; pictures come as uploads, which have a limit of their own."""


class Guard:
    """An ASGI application around another one.

    Args:
        app: The page.
        folder: Where uploads are; a call that names another file or an address is refused, for Gradio would copy or
            download it.
    """

    def __init__(self, app: Any, folder: Path) -> None:
        self._app, self._folder = app, folder.resolve()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def ruled(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        with contextlib.suppress(asyncio.CancelledError):  # an open page at the end, whose connection never ends itself
            if not _PAGE.fullmatch(f"{'GET' if scope['method'] == 'HEAD' else scope['method']} {scope['path']}"):
                await _refuse(ruled, 404)
            elif scope["path"] != _CALL:
                await self._app(scope, receive, ruled)
            elif (body := await _read(receive)) is None or not self._is_harmless(body):
                await _refuse(ruled, 400 if body is not None else 413)
            else:
                await self._app(scope, _replayed(body, receive), ruled)

    def _is_harmless(self, body: bytes) -> bool:
        """Whether every file that a call names is one that was uploaded."""
        try:
            paths = list(_paths(json.loads(body)))
        except (ValueError, RecursionError):
            return False
        return all(isinstance(path, str) and self._is_upload(path) for path in paths)

    def _is_upload(self, path: str) -> bool:
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self._folder)
        except (OSError, ValueError):
            return False


def _paths(value: Any) -> Iterator[Any]:
    """Whatever stands under `path` in a call, however deep."""
    if isinstance(value, dict):
        yield from (child for name, child in value.items() if name == "path" and child is not None)
        value = list(value.values())
    if isinstance(value, list):
        for child in value:
            yield from _paths(child)


async def _read(receive: Any) -> bytes | None:
    """The body, None for one that is too large."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > _MOST_BYTES:
            return None
    return bytes(body)


def _replayed(body: bytes, receive: Any) -> Any:
    """A `receive` that gives a body that was read, and then what else comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Any:
        return waiting.pop() if waiting else await receive()

    return give


async def _refuse(send: Any, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"the page does not ask for this\n"})
