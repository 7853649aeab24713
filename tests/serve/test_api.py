"""The routes as a client of OpenAI's API sees them: answers, pieces, counts, and one clear error for each mistake."""

from __future__ import annotations

import base64
import io
import json
import logging
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmexp.engine import Generator
from mmexp.engine.conversation import Conversation
from mmexp.llm import Sampling
from mmexp.serve import Desk, ServeConfig
from tests.serve.client import events, question, text_of

pytest.importorskip("fastapi", reason="the extra serve")

from fastapi.testclient import TestClient

from mmexp.serve.app import build_app

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def desk(generator: Generator) -> Iterator[Desk]:
    limits: dict[str, Any] = {"max_queue": 4, "max_images": 2, "max_messages": 6, "max_tokens": 200, "max_body_mb": 1,
                              "max_image_mb": 0.05, "max_image_megapixels": 0.5, "timeout_s": 30}  # fmt: skip
    desk = Desk(generator, ServeConfig(run="run", **limits), "tiny/one")
    yield desk
    desk.close()


@pytest.fixture(scope="module")
def client(desk: Desk) -> Iterator[TestClient]:
    with TestClient(build_app(desk)) as client:
        yield client


def ask(client: TestClient, messages: Any, **fields: Any) -> Any:
    return client.post(CHAT, json={"model": "tiny/one", "messages": messages, "max_tokens": 12, **fields})


def with_url(url: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def png(size: tuple[int, int], noise: bool = False) -> str:
    file = io.BytesIO()
    (Image.effect_noise(size, 90) if noise else Image.new("L", size)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def bomb() -> str:
    """A PNG of a few bytes that says that it has 3.6 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_a_conversation_goes_as_in_chat(client: TestClient, generator: Generator, pictures: list[Path]) -> None:
    talk = Conversation(generator, Sampling(max_new_tokens=12))
    messages: list[dict[str, Any]] = []
    for number, (text, shown) in enumerate([("What?", pictures[3]), ("And?", None), ("What?", pictures[7])]):
        if shown is not None:
            talk.show(str(shown))
        expected = talk.ask(text, lambda text: None)
        [message] = question(text, *([shown] if shown else []))
        if number:  # the order in which OpenAI's documentation has them
            message["content"].reverse()
        messages.append(message)
        reply = ask(client, messages).json()
        assert reply["choices"][0]["message"] == {"role": "assistant", "content": expected, "refusal": None}
        messages.append({"role": "assistant", "content": expected})
    item = generator.plan.processor.encode_prompt(talk.turns[:-1])
    counts = reply["usage"]
    assert counts["prompt_tokens"] == len(item.input_ids)
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]


def test_counts_and_the_end_are_right(client: TestClient, pictures: list[Path]) -> None:
    reply = ask(client, question("What?", pictures[0]), max_tokens=30).json()
    text = reply["choices"][0]["message"]["content"]
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 30
    cut = ask(client, question("What?", pictures[0]), max_completion_tokens=9).json()
    assert cut["usage"]["completion_tokens"] == 9
    assert text.startswith(cut["choices"][0]["message"]["content"].rstrip("\ufffd"))
    stopped = ask(client, question("What?", pictures[0]), max_tokens=30, stop=["zzz", text[6:8]]).json()
    assert stopped["choices"][0]["message"]["content"] == text[: text.index(text[6:8])].strip()
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] < 30


def test_a_stream_is_the_answer_in_pieces(client: TestClient, pictures: list[Path]) -> None:
    messages = question("What?", pictures[5])
    whole = ask(client, messages).json()
    response = ask(client, messages, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response.text)
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert len(chunks) > 5, "token by token"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    plain = events(ask(client, messages, stream=True).text)
    assert all(chunk["choices"] for chunk in plain)


def test_sampling_is_repeatable_with_a_seed_and_differs_without(client: TestClient, pictures: list[Path]) -> None:
    def say(**fields: Any) -> str:
        reply = ask(client, question("What?", pictures[1]), temperature=2.0, **fields)
        return reply.json()["choices"][0]["message"]["content"]

    assert say(seed=7) == say(seed=7)
    assert say(seed=7) != say(seed=8)
    assert len({say() for _ in range(4)}) > 1


def test_models_and_health(client: TestClient) -> None:
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny/one"
    assert client.get("/v1/models/tiny/one").json() == model
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").json() == {"status": "ok", "active": 0}


USER = [{"role": "user", "content": "What?"}]


@pytest.mark.parametrize(
    ("fields", "status", "code", "words"),
    [
        ({"model": "gpt"}, 404, "model_not_found", ["'gpt'", "tiny/one"]),
        ({"messages": None}, 400, "invalid_value", ["`messages`"]),
        ({"messages": [{"role": "wizard", "content": "a"}]}, 400, "invalid_value", ["wizard", "user or assistant"]),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "invalid_value", ["tool"]),
        ({"messages": [{"role": "user"}]}, 400, "invalid_value", ["content"]),
        ({"messages": USER * 2}, 400, "invalid_value", ["in turn"]),
        ({"messages": USER * 7}, 400, "too_many_messages", ["7 messages", "6"]),
        ({"messages": [*USER, {"role": "assistant", "content": "a"}]}, 400, "invalid_value", ["nothing to answer"]),
        ({"messages": [{"role": "user", "content": "a" * 3000}]}, 400, "context_length_exceeded", ["3", "768 tokens"]),
        ({"messages": [{"role": "user", "content": "a" * 99000}]}, 400, "context_length_exceeded", ["99000 char"]),
        ({"messages": [{"role": "user", "content": "an <image>"}]}, 400, "invalid_value", ["<image>", "image_url"]),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "invalid_json", ["surrogates"]),
        ({"messages": with_url("http://127.0.0.1/a.png")}, 400, "unsupported_image_url", ["no addresses", "data:"]),
        ({"messages": with_url("https://example.org/a.png")}, 400, "unsupported_image_url", ["no addresses"]),
        ({"messages": with_url("file:///etc/passwd")}, 400, "unsupported_image_url", ["no files"]),
        ({"messages": with_url("/etc/passwd")}, 400, "unsupported_image_url", ["no files"]),
        ({"messages": with_url("data:text/plain;base64,aGVsbG8=")}, 400, "unsupported_image_url", ["data:image"]),
        ({"messages": with_url(None)}, 400, "unsupported_image_url", ["data:image"]),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]}, 400,
         "invalid_value", ["image_url"]),
        ({"messages": with_url("data:image/png;base64,aGVsbG8=")}, 400, "invalid_image", ["cannot be read", "PNG"]),
        ({"messages": with_url("data:image/png;base64,")}, 400, "invalid_image", ["empty"]),
        ({"messages": with_url("data:image/png;base64,a*b")}, 400, "invalid_value", ["base64"]),
        ({"messages": with_url(png((800, 700)))}, 413, "image_too_large", ["800 x 700", "0.5 million"]),
        ({"messages": with_url(png((500, 400), noise=True))}, 413, "image_too_large", ["MiB", "0.05"]),
        ({"messages": with_url(bomb())}, 400, "invalid_image", ["far larger", "64 million"]),
        ({"messages": with_url(png((900, 1000), noise=True))}, 413, "request_too_large", ["1 MiB"]),
        ({"messages": [{"role": "user", "content": with_url(png((9, 9)))[0]["content"] * 3}]}, 400, "too_many_images",
         ["3 pictures", "2"]),
        ({"max_tokens": 0}, 400, "invalid_value", ["from 1 to 200"]),
        ({"max_tokens": 201}, 400, "invalid_value", ["from 1 to 200"]),
        ({"temperature": float("nan")}, 400, "invalid_value", ["nan"]),
        ({"temperature": True}, 400, "invalid_value", ["True"]),
        ({"top_p": 0}, 400, "invalid_value", ["top_p"]),
        ({"stop": [""]}, 400, "invalid_value", ["`stop`"]),
        ({"stream": "yes"}, 400, "invalid_value", ["true or false"]),
        ({"n": 2}, 400, "unsupported_parameter", ["`n`", "leave it out"]),
        ({"tools": [{}]}, 400, "unsupported_parameter", ["`tools`"]),
        ({"max_token": 3}, 400, "unknown_parameter", ["max_token"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_mistakes_get_one_clear_answer(
    client: TestClient, fields: dict[str, Any], status: int, code: str, words: list[str]
) -> None:
    body = json.dumps({"model": "tiny/one", "messages": USER, **fields})
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert error.keys() == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]
    assert client.get("/health").json()["active"] == 0


@pytest.mark.parametrize("body", ["{", "[]", "[" * 99999, '"text"', b"\xff\xfe", '{"model": 1e999}'], ids=lambda _: "")
def test_a_body_that_is_no_request(client: TestClient, body: Any) -> None:
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 404)
    assert response.json()["error"]["message"]


def test_other_content_and_other_routes(client: TestClient) -> None:
    assert client.post(CHAT, content="{}", headers={"content-type": "text/plain"}).status_code == 415
    for response in (client.get("/v1/completions"), client.get(CHAT), client.get("/docs")):
        assert response.status_code in (404, 405)
        assert "there are POST" in response.json()["error"]["message"]


class Slow:
    """Holds the model until it is told to go on."""

    def __init__(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, plain = threading.Event(), desk.batcher.generator.answer

        def answer(*args: Any) -> None:
            self.go.wait(20)
            plain(*args)

        monkeypatch.setattr(desk.batcher.generator, "answer", answer)


def test_a_full_queue_and_late_answers(client: TestClient, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, found = Slow(desk, monkeypatch), []
    threads = [threading.Thread(target=lambda: found.append(ask(client, USER))) for _ in range(4)]
    for thread in threads:
        thread.start()
    while desk.num_active < 4:
        time.sleep(0.01)
    refused = ask(client, USER)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert refused.headers["retry-after"] == "1"
    slow.go.set()
    for thread in threads:
        thread.join()
    assert [one.status_code for one in found] == [200] * 4
    assert len({one.json()["choices"][0]["message"]["content"] for one in found}) == 1

    late = Slow(desk, monkeypatch)
    monkeypatch.setattr(desk, "config", ServeConfig(run="run", timeout_s=0.5, max_tokens=200))
    begun = threading.Thread(target=lambda: found.append(ask(client, USER)))
    begun.start()
    while desk.num_active < 1:
        time.sleep(0.01)
    time.sleep(0.2)
    waiting = ask(client, USER, seed=1, temperature=0.5)
    begun.join()
    assert found[-1].status_code == 504
    assert "ask for fewer tokens" in found[-1].json()["error"]["message"]
    assert waiting.status_code == 503
    assert "busy" in waiting.json()["error"]["message"]
    late.go.set()
    assert desk.num_active == 0


def test_the_log_has_no_word_of_a_request(
    client: TestClient, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("cannot answer PASSWORD")

    monkeypatch.setattr(logging.getLogger("mmexp"), "propagate", True)
    monkeypatch.setattr(desk.batcher.generator, "answer", fail)
    with caplog.at_level(logging.DEBUG):
        failed = ask(client, [{"role": "user", "content": "PASSWORD"}])
        refused = ask(client, [{"role": "PASSWORD", "content": "PASSWORD"}])
    assert failed.status_code == 500
    assert "PASSWORD" not in failed.text
    assert refused.status_code == 400
    assert "chat 500 internal" in caplog.text
    assert "ValueError at" in caplog.text
    assert "chat 400 invalid_value" in caplog.text
    assert "PASSWORD" not in caplog.text
