"""The server as a process: under load, told to end, at a port in use, without its extra."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmexp.engine import Generator
from mmexp.errors import ConfigError
from mmexp.llm import Sampling
from tests.serve.client import post, question, sample, serving, stream, text_of

pytest.importorskip("fastapi", reason="the extra serve")


def test_no_answer_is_lost_or_another_ones(
    run: Path, generator: Generator, pictures: list[Path], tmp_path: Path
) -> None:
    asked = [(f"What {number}?", pictures[number % len(pictures)]) for number in range(96)]
    sampling = Sampling(max_new_tokens=10)
    expected = [generator.predict([sample(text, picture)], sampling)[0] for text, picture in asked]
    assert len(set(expected)) > 20, "else a mix-up would not be seen"

    with serving(run, tmp_path / "log", "model=m") as (_, port), ThreadPoolExecutor(16) as pool:

        def ask(number: int) -> str:
            body = {"model": "m", "messages": question(*asked[number]), "max_tokens": 10}
            if number % 2:
                return text_of(stream(port, body))
            status, reply = post(port, body)
            assert status == 200, reply
            return reply["choices"][0]["message"]["content"]

        assert list(pool.map(ask, range(len(asked)))) == expected
    log = (tmp_path / "log").read_text()
    assert "What" not in log
    num_batches = int(log.split(" answers in ")[1].split()[0])
    assert num_batches < 90, "requests were answered together"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_finishes_what_runs(run: Path, pictures: list[Path], tmp_path: Path, signum: int) -> None:
    with serving(run, tmp_path / "log", "model=m", "max_batch=1") as (process, port), ThreadPoolExecutor(3) as pool:
        body = {"model": "m", "messages": question("Tell?", pictures[0]), "max_tokens": 300, "temperature": 1.5}
        running = [pool.submit(post, port, body) for _ in range(3)]
        deadline = time.monotonic() + 30
        while _active(port) < 3 and not all(one.done() for one in running):
            assert time.monotonic() < deadline
        process.send_signal(signum)
        assert process.wait(60) == 0
        assert [one.result()[0] for one in running] == [200] * 3
        with pytest.raises(ConnectionRefusedError):
            post(port, body)
    log = (tmp_path / "log").read_text()
    assert "ending: 3 answers" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_client_that_leaves_frees_its_place(run: Path, pictures: list[Path], tmp_path: Path) -> None:
    with serving(run, tmp_path / "log", "model=m") as (_, port):
        for is_stream in (False, True):
            fields = {"max_tokens": 500, "temperature": 2.0, "stop": "never", "stream": is_stream}
            body = json.dumps({"model": "m", "messages": question("Tell?", pictures[0]), **fields})
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            connection.close()
        deadline = time.monotonic() + 20
        while _active(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert post(port, {"model": "m", "messages": question("What?", pictures[0])})[0] == 200


@pytest.mark.slow
def test_a_request_that_does_not_arrive_ends(run: Path, tmp_path: Path) -> None:
    with (
        serving(run, tmp_path / "log", "timeout_s=1") as (_, port),
        socket.create_connection(("127.0.0.1", port)) as one,
    ):
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
        )
        one.sendall(f"{head}\r\n{{".encode())
        one.settimeout(20)
        assert b"408" in one.recv(4096).split(b"\r\n")[0]


@pytest.mark.slow
def test_a_port_in_use_is_one_clear_line(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "mmexp.serve", f"run={run}", f"port={port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"ConfigError: port: {port} is in use")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_host_that_is_none_of_this_machine() -> None:
    from mmexp.serve.server import bind

    with pytest.raises(ConfigError, match=r"host: .*192\.0\.2\.1") as caught:
        bind("192.0.2.1", 0)
    assert caught.value.where == "host"
    bind("::1", 0).close() if socket.has_ipv6 and Path("/proc/net/if_inet6").is_file() else None


def _active(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/health")
    return json.loads(connection.getresponse().read())["active"]
