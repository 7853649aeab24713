"""The page's own requests come through, with the rule for browsers; nothing else does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mmexp.demo.guard import Guard


def through(folder: Path, method: str, path: str, body: bytes = b"") -> tuple[int, bytes | None, dict[bytes, bytes]]:
    """Status, the body that the page was handed (None when it was not asked), and headers."""
    seen: list[bytes] = []
    sent: list[dict[str, Any]] = []
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    waiting[-1]["more_body"] = False

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def page(scope: dict[str, Any], receive: Any, send: Any) -> None:
        got, more = b"", True
        while more:
            message = await receive()
            got, more = got + message["body"], message["more_body"]
        seen.append(got)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    scope = {"type": "http", "method": method, "path": path}
    asyncio.run(Guard(page, folder)(scope, receive, send))
    return sent[0]["status"], seen[0] if seen else None, dict(sent[0]["headers"])


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/assets/a/b.js", "/gradio_api/file=/a/x.png"])
def test_what_the_page_asks_for_comes_through_with_the_rule(tmp_path: Path, path: str) -> None:
    status, body, headers = through(tmp_path, "GET", path)
    assert (status, body) == (200, b"")
    assert headers[b"content-security-policy"].startswith(b"default-src 'self';")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=https://example.org/x"),
        ("GET", "/gradio_api/run-history/records"),
        ("GET", "/gradio_api/token"),
        ("POST", "/gradio_api/run-history/connect"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/call/take"),
        ("POST", "/gradio_api/component_server"),
        ("DELETE", "/config"),
        ("GET", "/config/../gradio_api/call/take"),
        ("GET", "/monitoring/x"),
    ],
)
def test_nothing_else_of_gradio_is_reached(tmp_path: Path, method: str, path: str) -> None:
    assert through(tmp_path, method, path)[:2] == (404, None)


def call(*data: Any) -> bytes:
    return json.dumps({"data": data, "fn_index": 0, "session_hash": "x"}).encode()


def test_a_call_may_name_uploads_alone(tmp_path: Path) -> None:
    def status(path: Any) -> int:
        return through(tmp_path, "POST", "/gradio_api/queue/join", call("words", [{"deep": {"path": path}}]))[0]

    (tmp_path / "link.png").symlink_to("/etc/hostname")
    assert status(str(tmp_path / "hash" / "image.png")) == 200
    assert status(None) == 200
    outside = ["/etc/hostname", f"{tmp_path}/../x.png", f"{tmp_path}2/x.png", "x.png", "", "http://192.0.2.1/x.png",
               f"{tmp_path}/link.png", f"{tmp_path}/a\0b", "a" * 5000, 7, {"path": str(tmp_path)}]  # fmt: skip
    assert [path for path in outside if status(path) != 400] == []


def test_a_call_comes_through_as_it_was_and_not_too_large(tmp_path: Path) -> None:
    body = call("words " * 1000)
    assert through(tmp_path, "POST", "/gradio_api/queue/join", body)[:2] == (200, body)
    assert through(tmp_path, "POST", "/gradio_api/queue/join", call("x" * 2**20))[:2] == (413, None)
    for wrong in (b"no json", b"[" * 100_000):
        assert through(tmp_path, "POST", "/gradio_api/queue/join", wrong)[:2] == (400, None)
