"""Who rewrites descriptions: a real server on this machine that answers well and badly, and a small LM."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest

from mmexp.config.paths import parts_dir
from mmexp.data import EndpointRewriterConfig, LocalRewriterConfig
from mmexp.data.rewrite import PROMPT
from mmexp.errors import ConfigError, DataError, MmexpError

KEY = "a-key-of-nobody-1234567890"


def completion(text: str | None, finish: str = "stop") -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]}).encode()


class Server(ThreadingHTTPServer):
    """Answers each request with the next of `script` (the last for ever): bytes, a status, or a number of seconds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Any] = [completion("A dog runs.")]
        self.seen: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append({"path": self.path, "key": self.headers["Authorization"], "time": time.monotonic(),
                                     **body})  # fmt: skip
            answer = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        answer = answer(body) if callable(answer) else answer
        if isinstance(answer, float):
            time.sleep(answer)
            answer = completion("late")
        status, headers, content = (200, {}, answer) if isinstance(answer, bytes) else answer
        if status is None:
            self.connection.close()
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def config(server: Server, **changes: Any) -> EndpointRewriterConfig:
    return EndpointRewriterConfig(**{"url": server.url, "model": "m", "wait_s": 0.01, "timeout_s": 5.0, **changes})


def test_a_text_is_asked_about_with_the_published_prompt(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    rewriter = config(server, key_variable="MY_KEY", max_new_tokens=77).build()
    (answer,) = rewriter.rewrite(["A dog runs. A dog runs."])
    assert (answer.text, answer.is_cut, answer.failure) == ("A dog runs.", False, None)
    (seen,) = server.seen
    assert seen["path"] == "/v1/chat/completions"
    assert seen["key"] == f"Bearer {KEY}"
    assert seen["messages"] == [{"role": "user", "content": f"{PROMPT}\n\nA dog runs. A dog runs."}]
    assert (seen["model"], seen["max_tokens"], seen["temperature"]) == ("m", 77, 0.0)
    assert KEY not in repr(rewriter) + str(rewriter.config)


def test_answers_keep_their_order_and_a_cut_one_is_told(server: Server) -> None:
    def slow_for_the_first(body: dict[str, Any]) -> bytes:
        text = body["messages"][0]["content"].rsplit("\n\n", 1)[1]
        time.sleep(0.2 if text == "0" else 0.0)
        return completion(f"<{text}>", "length" if text == "5" else "stop")

    server.script = [slow_for_the_first]
    answers = config(server).build().rewrite([str(number) for number in range(9)])
    assert [answer.text for answer in answers] == [f"<{number}>" for number in range(9)]
    assert [answer.is_cut for answer in answers] == [number == 5 for number in range(9)]
    assert {seen["key"] for seen in server.seen} == {None}


@pytest.mark.parametrize(
    "trouble",
    [(429, {}, b'{"error": {"message": "slow down"}}'), (500, {}, b"oops"), (503, {"Retry-After": "0"}, b""),
     (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""), (None, {}, b""), 0.6, b"<html>", b"[]",
     b'{"choices": []}', completion(None), completion("  "), b'{"choices": [{"message": null}]}', b"\xff\xfe"],
    ids=["429", "500", "retry_after", "retry_at", "closed", "late", "html", "list", "no_choice", "null", "blank",
         "no_message", "bytes"],
)  # fmt: skip
def test_troubles_that_pass_are_asked_again(server: Server, trouble: Any) -> None:
    server.script = [trouble, trouble, completion("A dog.")]
    (answer,) = config(server, timeout_s=0.3).build().rewrite(["x"])
    assert answer.text == "A dog."
    assert len(server.seen) == 3


def test_waiting_grows_and_obeys_the_endpoint(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.script = [(500, {}, b""), (500, {}, b""), (429, {"Retry-After": "0.5"}, b""), completion("A dog.")]
    with caplog.at_level(logging.INFO):
        assert config(server, wait_s=0.1).build().rewrite(["x"])[0].text == "A dog."
    times = [seen["time"] for seen in server.seen]
    first, second, third = (behind - before for before, behind in pairwise(times))
    assert first > 0.07
    assert second > 0.14
    assert third >= 0.5
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "rewriting: HTTP 500 Internal Server Error", "rewriting: HTTP 500 Internal Server Error",
        "rewriting: HTTP 429 Too Many Requests"]  # fmt: skip


def test_after_the_last_try_the_text_has_failed(server: Server) -> None:
    server.script = [(500, {}, b'{"error": {"message": "out of memory"}}')]
    (answer,) = config(server, retries=2).build().rewrite(["x"])
    assert answer.failure == "HTTP 500 Internal Server Error: out of memory (after 3 tries)"
    assert len(server.seen) == 3


def test_a_refused_text_is_not_asked_again(server: Server) -> None:
    server.script = [(400, {}, b'{"error": "too long"}'), completion("A dog.")]
    answers = config(server, num_parallel=1).build().rewrite(["x", "y"])
    assert answers[0].failure == "HTTP 400 Bad Request: too long"
    assert answers[1].text == "A dog."


@pytest.mark.parametrize(
    ("status", "with_key", "told"),
    [(401, True, "the key in OPENAI_API_KEY"), (401, False, "no key was sent; put one into OPENAI_API_KEY"),
     (404, True, "rewrite.url"), (302, True, "redirections are not followed")],
)  # fmt: skip
def test_what_no_text_can_pass_is_one_error_without_the_key(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int, with_key: bool,
    told: str,
) -> None:  # fmt: skip
    if with_key:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.script = [(status, {"Location": f"{server.url}/else"}, f'{{"error": "bad key {KEY}"}}'.encode())]
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError) as error:
        config(server, num_parallel=1).build().rewrite(["x", "y"])
    assert told in str(error.value)
    assert f"HTTP {status}" in str(error.value)
    assert len(server.seen) == 1, "a redirection would carry the key elsewhere"
    if with_key:
        assert KEY not in str(error.value) + caplog.text


def test_an_endpoint_that_is_not_there_is_told_soon() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(DataError, match=f"127.0.0.1:{port}/v1: .*refused.*\n.*expected: an answer"):
        EndpointRewriterConfig(url=f"http://127.0.0.1:{port}/v1", model="m", wait_s=0.1).check()
    assert time.monotonic() - began < 20


def test_a_check_passes_where_the_endpoint_answers(server: Server) -> None:
    config(server, url=f"{server.url}/chat/completions").check()
    assert server.seen[0]["path"] == "/v1/chat/completions"


def test_an_error_does_not_wait_for_texts_that_wait(server: Server) -> None:
    server.script = [(401, {}, b""), (429, {"Retry-After": "30"}, b"")]
    began = time.monotonic()
    with pytest.raises(DataError, match="HTTP 401"):
        config(server, num_parallel=3).build().rewrite(["x"] * 3)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "changes",
    [{"url": "ftp://host/v1"}, {"url": "host/v1"}, {"url": "file:///etc/passwd"}, {"url": "http://me:word@host/v1"},
     {"num_parallel": 0}, {"retries": -1}, {"timeout_s": 0.0}, {"max_new_tokens": 0}],
    ids=str,
)  # fmt: skip
def test_wrong_settings_name_themselves(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"rewrite.{next(iter(changes))}") as error:
        EndpointRewriterConfig(**{"url": "http://host/v1", "model": "m", **changes}).build()
    assert "word" not in str(error.value).replace("password", "")


def test_a_small_lm_rewrites_alone_and_in_a_batch() -> None:
    rewriter = LocalRewriterConfig(path=str(parts_dir() / "language"), max_new_tokens=12, prompt="say:").build()
    texts = ["a red circle", "What colour is the circle?"]
    together = rewriter.rewrite(texts)
    assert together == [rewriter.rewrite([text])[0] for text in texts], "left padding changes nothing"
    assert [answer.is_cut for answer in together] == [True, False], "it goes on with the one, and ends the other"
    assert all(answer.text and answer.failure is None for answer in together)
    assert not any(answer.text.startswith("say") for answer in together)


def test_a_chat_template_is_used_where_there_is_one() -> None:
    rewriter = LocalRewriterConfig(path=str(parts_dir() / "language"), max_new_tokens=4, prompt="say").build()
    plain = rewriter._prompts(["a circle"])["input_ids"][0]
    assert rewriter.tokenizer.decode(plain, skip_special_tokens=True).split() == ["say", "a", "circle"]
    rewriter.tokenizer.chat_template = "{% for m in messages %}left {{ m['content'] }} right{% endfor %}"
    chat = rewriter._prompts(["a circle"])["input_ids"][0]
    assert rewriter.tokenizer.decode(chat, skip_special_tokens=True).split() == ["left", "say", "a", "circle", "right"]


@pytest.mark.parametrize(
    ("path", "told"), [("/no/such/folder", "no such folder"), ("nobody/nothing-at-all", "nothing")]
)
def test_a_missing_lm_is_told_by_its_path(path: str, told: str) -> None:
    with pytest.raises(MmexpError, match=told):
        LocalRewriterConfig(path=path).check()
    with pytest.raises(ConfigError, match=r"rewrite\.batch_size"):
        LocalRewriterConfig(path=path, batch_size=0).check()
