"""Fetching, against a hub of our own on this machine that speaks the real protocol."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"w" * 4000, "old.bin": b"b" * 9000}
COMMIT = "a" * 40
PROGRAM = """
import sys, json
from pathlib import Path
from mmexp.data.fetch import Need, bring, look
need = Need(what="llm", source=sys.argv[1], folder=Path(sys.argv[2]), file=Path(sys.argv[2]) / "config.json",
            estimate_bytes=77)
found = look(need)
print(json.dumps([found.is_here, found.num_bytes, found.is_estimate, found.remark]))
if "bring" in sys.argv:
    bring(need)
    print(json.dumps([look(need).is_here, sorted(p.name for p in Path(sys.argv[2]).iterdir() if p.is_file())]))
"""


class Hub(BaseHTTPRequestHandler):
    """Just enough of the hub: repository info with sizes, and files with HEAD and GET."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/name/tree/"):
            entries = [{"type": "file", "path": n, "size": len(d), "oid": "b" * 40} for n, d in FILES.items()]
            body, kind = json.dumps(entries).encode(), "application/json"
        elif path.startswith("/api/models/owner/name"):
            siblings = [{"rfilename": name, "size": len(data), "blobId": "b" * 40} for name, data in FILES.items()]
            body = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode()
            kind = "application/json"
        elif path.rsplit("/", 1)[-1] in FILES and path.startswith("/owner/name/resolve/"):
            body, kind = FILES[path.rsplit("/", 1)[-1]], "application/octet-stream"
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{len(body):040d}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(folder: Path, source: str, *words: str, **environment: str) -> list[list[object]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, source, str(folder), *words],
        env={"PATH": "", "HOME": str(folder), "HF_HOME": str(folder / "hf"), "PYTHONPATH": ":".join(sys.path),
             "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_sizes_come_from_the_hub_and_files_arrive(endpoint: str, tmp_path: Path) -> None:
    before, after = run(tmp_path / "m", "owner/name", "bring", HF_ENDPOINT=endpoint)
    assert before == [False, len(FILES["config.json"]) + 4000, False, ""], "one of the two formats of the weights"
    assert after == [True, ["config.json", "model.safetensors"]]
    assert (tmp_path / "m/model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_offline_the_estimate_stands_in_and_says_so(tmp_path: Path) -> None:
    (found,) = run(tmp_path, "owner/name", HF_HUB_OFFLINE="1")
    assert found[:3] == [False, 77, True]
    assert "HF_HUB_OFFLINE" in str(found[3])


def test_a_repository_that_does_not_exist(endpoint: str, tmp_path: Path) -> None:
    (found,) = run(tmp_path, "owner/nothing", HF_ENDPOINT=endpoint)
    assert found[:3] == [False, 77, True]
    assert "404" in str(found[3])
