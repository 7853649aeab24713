"""A rewriter behind an OpenAI-compatible endpoint, spoken to with the standard library alone."""

from __future__ import annotations

import email.utils
import http.client
import json
import logging
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from mmexp.data.rewrite import PROBE, PROMPT, Rewritten
from mmexp.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20
_LONGEST_WAIT_S = 60.0
_OF_THIS_TEXT = (400, 413, 422)
"""Answers that refuse one text (too long, filtered), not all of them."""
_PASSING = (408, 409, 425, 429)
"""Answers to ask again after, besides all from 500 on."""


@dataclass(frozen=True, kw_only=True)
class EndpointRewriterConfig:
    """`POST {url}/chat/completions`, as OpenAI, vLLM, llama.cpp and others serve it."""

    url: str
    """Begins with http:// or https:// and ends before /chat/completions, mostly in /v1."""
    model: str
    """Name of the model there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; without it none is sent. The key is written nowhere."""
    prompt: str = PROMPT
    """Stands before the description."""
    max_new_tokens: int = 512
    """Longest answer."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    timeout_s: float = 60.0
    """Longest wait for the endpoint."""
    retries: int = 5
    """How often a text is asked again after busy, failed, late or unreadable answers."""
    wait_s: float = 1.0
    """Before the first retry; doubles from one to the next, unless the endpoint says how long."""
    num_parallel: int = 4
    """Requests at the same time."""

    def check(self) -> None:
        """Rewrites one short text, with one retry.

        Raises:
            ConfigError: a setting is wrong.
            DataError: the endpoint refuses, or cannot be reached.
        """
        answer = replace(self, retries=min(self.retries, 1)).build().rewrite([PROBE])[0]
        if answer.failure is not None:
            raise DataError(answer.failure, expected="an answer to a short text", where=f"rewrite.url={self.url}",
                            fix="start it, correct rewrite.url or rewrite.model, or rewrite=none")  # fmt: skip

    def build(self) -> EndpointRewriter:
        """Raises ConfigError for a URL that is none, or numbers out of range."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self.url!r}", expected="http://host/v1 or https://host/v1", where="rewrite.url")
        if parts.username or parts.password:
            raise ConfigError("it holds a password", expected="a URL without one", where="rewrite.url",
                              fix=f"put it into the environment variable {self.key_variable}")  # fmt: skip
        least = {"max_new_tokens": 1, "num_parallel": 1, "retries": 0, "wait_s": 0, "temperature": 0, "timeout_s": 0.01}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{getattr(self, name)}", expected=f"at least {low}", where=f"rewrite.{name}")
        return EndpointRewriter(self, os.environ.get(self.key_variable, "").strip())


class _Again(Exception):
    """An attempt that may be repeated."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait_s = reason, wait_s


@dataclass(frozen=True)
class EndpointRewriter:
    """See `EndpointRewriterConfig`."""

    config: EndpointRewriterConfig
    key: str = field(repr=False)
    """Sent as a bearer token; empty sends none."""

    @property
    def batch_size(self) -> int:
        """As many as are asked at once, some times over, so that few of them wait for the slowest."""
        return 4 * self.config.num_parallel

    def rewrite(self, texts: Sequence[str]) -> list[Rewritten]:
        """See `Rewriter`."""
        pool, stop = ThreadPoolExecutor(self.config.num_parallel), threading.Event()
        try:
            return list(pool.map(lambda text: self._one(text, stop), texts))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _one(self, text: str, stop: threading.Event) -> Rewritten:
        """One text, asked until it has an answer; a refusal of everything stops the others too."""
        wait_s = self.config.wait_s
        for attempt in range(self.config.retries + 1):
            if stop.is_set():
                break
            try:
                return self._ask(text)
            except _Again as again:
                if attempt == self.config.retries:
                    tries = f"{attempt + 1} tries" if attempt else "the only try"
                    return Rewritten(failure=f"{again.reason} (after {tries})")
                pause = wait_s * random.uniform(0.75, 1.25) if again.wait_s is None else again.wait_s
                log.info("rewriting: %s; again in %.1f s", again.reason, min(pause, _LONGEST_WAIT_S))
                stop.wait(min(pause, _LONGEST_WAIT_S))
                wait_s *= 2
            except DataError:
                stop.set()
                raise
        return Rewritten(failure="stopped before it was asked")

    def _ask(self, text: str) -> Rewritten:
        """One request.

        Raises:
            _Again: the answer is of a kind that passes.
            DataError: the endpoint refuses whatever is asked.
        """
        try:
            with _OPENER.open(self._request(text), timeout=self.config.timeout_s) as response:
                return _read(response.read(_MAX_BYTES))
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except TimeoutError as error:
            raise _Again(f"no answer in {self.config.timeout_s:g} s") from error
        except urllib.error.URLError as error:
            late = isinstance(error.reason, TimeoutError)
            raise _Again(f"no answer in {self.config.timeout_s:g} s" if late else f"{error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Again(f"the connection broke ({error or type(error).__name__})") from error

    def _request(self, text: str) -> urllib.request.Request:
        content = f"{self.config.prompt}\n\n{text}"
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.config.max_new_tokens,
            "temperature": self.config.temperature,
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = self.config.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        return urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")

    def _refused(self, error: urllib.error.HTTPError) -> Rewritten:
        with error:
            said = self._said(error)
        if error.code in _PASSING or error.code >= 500:
            raise _Again(said, _retry_after(error))
        if error.code in _OF_THIS_TEXT:
            return Rewritten(failure=said)
        has_key = "the key in" if self.key else "no key was sent; put one into"
        fixes = {401: f"{has_key} {self.config.key_variable}", 403: f"{has_key} {self.config.key_variable}",
                 404: "check rewrite.url (it mostly ends in /v1) and rewrite.model"}  # fmt: skip
        raise DataError(said, expected="an answer", where=f"rewrite.url={self.config.url}",
                        fix=fixes.get(error.code, "check rewrite.url; redirections are not followed"))  # fmt: skip

    def _said(self, error: urllib.error.HTTPError) -> str:
        """Status and the message in the body, without the key should the endpoint repeat it."""
        try:
            body = error.read(_MAX_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            body = ""
        try:
            content: Any = json.loads(body)
            told = content["error"]["message"] if isinstance(content["error"], dict) else content["error"]
        except (ValueError, KeyError, TypeError):
            told = body
        told = " ".join(str(told).split())[:200]
        if self.key:
            told = told.replace(self.key, "<key>")
        return f"HTTP {error.code} {error.reason}" + (f": {told}" if told else "")


def _read(body: bytes) -> Rewritten:
    """The answer of a completion. Raises _Again when it is none."""
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        start = body[:60].decode("utf-8", "replace")
        raise _Again(f"the answer is no completion, it begins {start!r}") from error
    if not isinstance(text, str) or not text.strip():
        raise _Again("the answer holds no text")
    return Rewritten(text=text.strip(), is_cut=choice.get("finish_reason") == "length")


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the endpoint asks to wait: a number, or a date."""
    value = error.headers.get("Retry-After", "") if error.headers else ""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection would carry the key to another host; it is reported instead."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
