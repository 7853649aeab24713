"""`python -m mmexp.data caption` as a user types it: a real run, a real endpoint on this machine, and real kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmexp.config import compose, instantiate
from mmexp.errors import DataError, MmexpError
from mmexp.present_data import caption_rows

ROOT = Path(__file__).parents[1]
KEY = "a-key-of-nobody-0987654321"
NUM_PICTURES = 6
SMALL = ["max_new_tokens=6", "batch_size=2"]


class Endpoint(ThreadingHTTPServer):
    """Numbers its answers. Past `fast` of them it takes ten seconds each; past `open_for` it wants another key."""

    daemon_threads = True
    fast = open_for = 10**6

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.keys: set[str | None] = set()


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body["messages"][0]["content"])
        self.server.keys.add(self.headers["Authorization"])
        number = len(self.server.asked)
        if number > self.server.fast:
            time.sleep(10)
        refused = number > self.server.open_for
        said = {"error": {"message": "that key is over"}} if refused else {
            "choices": [{"message": {"content": f"A dog with {number} spots runs."}, "finish_reason": "stop"}]
        }  # fmt: skip
        self.send_response(401 if refused else 200)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with a caption each, and a run that was trained on them for two steps."""
    from mmexp.train import train

    root = tmp_path_factory.mktemp("caption")
    rows = []
    for index in range(NUM_PICTURES):
        Image.new("RGB", (30, 30), (index * 20, 90, 255 - index * 20)).save(root / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"the circle number {index}"}]
        rows.append({"id": f"row{index}", "image": f"{index}.png", "conversations": turns})
    (root / "rows.json").write_text(json.dumps(rows))
    train(compose("train", [
        "stage=align", "scale=paper", "encoder=tiny", "llm=tiny", "data=llava_json", f"data.path={root}/rows.json",
        "trainer=smoke", "logger=none", f"paths.outputs={root}/outputs", f"paths.cache={root}/cache", "run_id=one",
        "stage.batch_size=2", "stage.micro_batch_size=2", "name=tiny", "evaluation=none",
    ]))  # fmt: skip
    return root


def start(folder: Path, out: str, *further: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "mmexp.data", "caption", f"run={folder}/outputs/tiny/align/one"]
    line += [f"out={folder}/{out}", *SMALL, *further]
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"COLUMNS": "200", "OPENAI_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def caption(folder: Path, out: str, *further: str) -> dict[str, Any]:
    """The same without a process of its own."""
    from mmexp.captioning import caption as write_captions

    line = [f"run={folder}/outputs/tiny/align/one", f"out={folder}/{out}", *SMALL, *further]
    return write_captions(compose("data_caption", line))[0]


def rewriting(endpoint: Endpoint) -> list[str]:
    return ["rewrite=endpoint", f"rewrite.url=http://127.0.0.1:{endpoint.server_address[1]}/v1", "rewrite.model=m",
            "rewrite.num_parallel=1", "rewrite.retries=0", "rewrite_all=true"]  # fmt: skip


def work(folder: Path, out: str) -> list[dict[str, Any]]:
    lines = (folder / out / "work.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def test_a_run_writes_the_data_of_the_second_stage(folder: Path, endpoint: Endpoint) -> None:
    report = caption(folder, "cc_sbu_align", *rewriting(endpoint))
    assert (report["rows"], report["kept"], report["continued"]) == (NUM_PICTURES,) * 3
    assert len(endpoint.asked) == NUM_PICTURES + 1
    assert endpoint.keys == {f"Bearer {KEY}"}
    written = json.loads((folder / "cc_sbu_align/filter_cap.json").read_text())["annotations"]
    assert [row["image_id"] for row in written] == [str(row) for row in range(NUM_PICTURES)]
    assert [row["caption"] for row in written] == [f"A dog with {n + 2} spots runs." for n in range(NUM_PICTURES)]
    assert not any(KEY in path.read_text(errors="replace") for path in (folder / "cc_sbu_align").glob("*.json*"))
    cfg = compose("train", ["data=cc_sbu_align", f"paths.data={folder}", "encoder=tiny", "llm=tiny"])
    data = instantiate(cfg.cfg["data"], "data", cfg.registered).build()
    picture = Path(data[3].turns[0].media[0].source)
    assert picture == folder / "cc_sbu_align/image/3.jpg"
    with Image.open(picture) as image:
        assert (image.format, image.size) == ("JPEG", (30, 30))


def test_a_run_that_has_nothing_flawless_to_say_is_told_so(folder: Path) -> None:
    """What a model of random weights writes is no sentence."""
    with pytest.raises(DataError, match=f"none of {NUM_PICTURES} descriptions passed"):
        caption(folder, "none")
    report = json.loads((folder / "none/report.json").read_text())
    assert report["flagged"] == report["rejected"]
    assert sum(report["rejected"].values()) >= NUM_PICTURES
    told = [row["what"] for row in caption_rows(report)]
    assert all(f"rejected: {reason}" in told for reason in report["rejected"])


def test_killed_and_started_again_it_goes_on_where_it_was(folder: Path, endpoint: Endpoint) -> None:
    endpoint.fast = 5  # a try, and one batch of four
    process = start(folder, "killed", *rewriting(endpoint))
    deadline = time.monotonic() + 200
    while len(endpoint.asked) < 6 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    before = work(folder, "killed")
    assert sum("caption" in entry for entry in before) == NUM_PICTURES
    assert sum("rewritten" in entry for entry in before) == 4
    assert not (folder / "killed/filter_cap.json").exists()
    endpoint.fast, endpoint.asked = 10**6, []
    assert caption(folder, "killed", *rewriting(endpoint))["kept"] == NUM_PICTURES
    assert len(endpoint.asked) == 1 + 2
    assert work(folder, "killed")[: len(before)] == before, "nothing is described or rewritten twice"


def test_a_key_that_ends_loses_nothing(folder: Path, endpoint: Endpoint) -> None:
    endpoint.open_for = 5
    with pytest.raises(DataError, match="HTTP 401 Unauthorized: that key is over") as error:
        caption(folder, "refused", *rewriting(endpoint))
    assert "the key in OPENAI_API_KEY" in str(error.value)
    assert KEY not in str(error.value)
    assert sum("rewritten" in entry for entry in work(folder, "refused")) == 4
    assert caption(folder, "refused", "rewrite=none")["kept"] == 4


@pytest.mark.parametrize(
    ("further", "told"),
    [
        (["rewrite=endpoint", "rewrite.url=http://127.0.0.1:9/v1", "rewrite.model=m", "rewrite.retries=0"], "refused"),
        (["rewrite=endpoint"], r"rewrite\.url: not given"),
        (["rewrite=local", "rewrite.path=/no/such"], "no such folder"),
        (["rewrite=chatgpt"], "no choice 'chatgpt'"),
        (["rewrite.model=m"], "rewrite: model of nothing"),
        (["data.path=rows.json"], "data: path of nothing"),
        (["run=nowhere"], "nowhere is no run directory"),
        (["batch_size=0"], "batch_size: 0"),
        (["limitt=3"], "limit"),
        (["data=llava_json", "data.path=none.json"], "does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(folder: Path, further: list[str], told: str) -> None:
    with pytest.raises(MmexpError, match=told):
        caption(folder, "mistaken", *further)
    assert not (folder / "mistaken").exists()
