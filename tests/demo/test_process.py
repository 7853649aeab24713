"""The command as a process: closed to others, silent to the outside, gone when told."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmexp.demo.settings import AUTH
from tests.serve.client import started

pytest.importorskip("gradio", reason="the extra demo")

SPY = """
import os, socket

pytestmark = pytest.mark.slow
def spied(name):
    plain = getattr(socket.socket, name)
    def call(self, address, *rest):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith("127."):
            open(os.environ["SPIED"], "a").write(f"{name} {address}\\n")
        return plain(self, address, *rest)
    setattr(socket.socket, name, call)
for name in ("connect", "connect_ex", "bind"):
    spied(name)
find = socket.getaddrinfo
def found(host, *rest, **more):
    if host not in ("127.0.0.1", "localhost"):
        open(os.environ["SPIED"], "a").write(f"looked up {host}\\n")
    return find(host, *rest, **more)
socket.getaddrinfo = found
"""


@contextlib.contextmanager
def showing(run: Path | str, log: Path, *settings: str, **variables: str) -> Iterator[tuple[Any, int]]:
    """The page's process and its port."""
    with started("mmexp.demo", log, r"at http://[0-9.]+:(\d+) ", f"run={run}", *settings, **variables) as found:
        yield found


def ask(port: int, path: str, data: Any = None, **headers: str) -> tuple[int, str, Any]:
    """Status, body and headers of a request, a GET unless there is data."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = data if isinstance(data, str) or data is None else json.dumps(data)
    connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    return response.status, response.read().decode(errors="replace"), response.headers


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_leaves_nothing_behind(run: Path, tmp_path: Path, signum: int) -> None:
    (tmp_path / "tmp").mkdir()
    with showing(run, tmp_path / "log", TMPDIR=str(tmp_path / "tmp")) as (process, port):
        assert ask(port, "/")[0] == 200
        listening = http.client.HTTPConnection("127.0.0.1", port)
        listening.request("GET", "/gradio_api/heartbeat/test")  # an open page keeps such a connection
        assert listening.getresponse().status == 200
        assert list((tmp_path / "tmp").glob("mmexp_demo_*"))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signum)
        assert process.wait(20) == 0
        with pytest.raises(ConnectionRefusedError):
            ask(port, "/")
    assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]
    assert not list((tmp_path / "tmp").glob("mmexp_demo_*"))
    log = (tmp_path / "log").read_text()
    assert "ending" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_the_environment_does_not_open_it_and_nothing_goes_outside(run: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SPY)
    opened = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "True", "GRADIO_ANALYTICS_ENABLED": "True",
              "GRADIO_MCP_SERVER": "True", "GRADIO_ALLOWED_PATHS": "/", "GRADIO_DEBUG": "1"}  # fmt: skip
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    spied = tmp_path / "spied"
    with showing(run, tmp_path / "log", PYTHONPATH=paths, SPIED=str(spied), **opened) as (_, port):
        status, text, headers = ask(port, "/")
        assert status == 200
        assert "default-src 'self'" in headers["content-security-policy"]
        assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"']https?://(?!127\.0\.0\.1)", text)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 5)  # another address of this machine
        assert ask(port, "/gradio_api/mcp/sse")[0] == 404
        assert ask(port, "/gradio_api/file=/etc/hostname")[0] == 403
        for path in ("/etc/hostname", "http://192.0.2.1/x.png"):  # Gradio would read the one and download the other
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            call = {"fn_index": 0, "data": [file, None], "session_hash": "test"}
            assert ask(port, "/gradio_api/queue/join", call)[0] == 400
        head = '--x\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
        large = f"{head}{'x' * (11 * 2**20)}\r\n--x--\r\n"
        assert ask(port, "/gradio_api/upload", large, **{"Content-Type": "multipart/form-data; boundary=x"})[0] == 413
    assert not spied.exists(), spied.read_text()


def test_a_password_stands_in_front_of_everything(run: Path, tmp_path: Path) -> None:
    settings = {AUTH: "me:open sesame"}
    with showing(run, tmp_path / "log", "host=0.0.0.0", **settings) as (_, port):
        socket.create_connection(("127.0.0.2", port), 5).close()
        for path in ("/config", "/gradio_api/queue/data?session_hash=x", "/gradio_api/file=x"):
            assert ask(port, path)[0] == 401, path
        assert ask(port, "/gradio_api/queue/join", {"fn_index": 0, "data": [], "session_hash": "x"})[0] == 401
        assert ask(port, "/gradio_api/upload", "")[0] == 401
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        wrong = urllib.parse.urlencode({"username": "me", "password": "guess"})
        assert ask(port, "/login", wrong, **form)[0] == 400
        right = urllib.parse.urlencode({"username": "me", "password": "open sesame"})
        status, _, headers = ask(port, "/login", right, **form)
        assert status == 200
        cookies = "; ".join(value.split(";")[0] for value in headers.get_all("set-cookie"))
        assert ask(port, "/config", Cookie=cookies)[0] == 200
    assert "sesame" not in (tmp_path / "log").read_text()
