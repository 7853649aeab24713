"""A server as a process of its own, and a client that uses nothing but the standard library."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmexp.contracts import Medium, Sample, Text, Turn


@contextmanager
def serving(run: Path | str, log: Path, *settings: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and its port, when it listens; it is ended at the end."""
    with started("mmexp.serve", log, r"serving .* at http://127\.0\.0\.1:(\d+)/v1", f"run={run}", *settings) as found:
        yield found


@contextmanager
def started(
    module: str, log: Path, says: str, *settings: str, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command that listens: its process, and the port that its log `says`; it is ended at the end."""
    with log.open("w") as out:
        command = [sys.executable, "-m", module, "port=0", *settings]
        environment = {**os.environ, **variables}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(says, log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield process, int(found.group(1))
    finally:
        process.terminate()
        process.wait(60)


def post(port: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and JSON."""
    response = _open(port, body)
    return response.status, json.loads(response.read())


def stream(port: int, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a streamed answer."""
    response = _open(port, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert response.status == 200, response.read()
    return events(response.read().decode())


def events(text: str) -> list[dict[str, Any]]:
    """The chunks of server-sent events, which must end with `[DONE]`."""
    found = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert found.pop() == "[DONE]"
    return [json.loads(one) for one in found]


def text_of(chunks: list[dict[str, Any]]) -> str:
    """What the pieces of a stream say together."""
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def question(text: str, *pictures: Path | str) -> list[dict[str, Any]]:
    """The messages of one question about pictures."""
    urls = (base64.b64encode(Path(picture).read_bytes()).decode() for picture in pictures)
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{url}"}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def sample(text: str, *pictures: Path | str) -> Sample:
    """The same as the model gets it, without a server."""
    media = tuple(Medium(source=str(picture)) for picture in pictures)
    parts = (*media, Text(text="\n"), Text(text=text)) if media else (Text(text=text),)
    return Sample(id="alone", turns=(Turn(role="user", parts=parts),))


def _open(port: int, body: dict[str, Any]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()
