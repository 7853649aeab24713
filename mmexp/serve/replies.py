"""What answers look like in OpenAI's API."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The form of one answer, whole or in pieces."""

    model: str
    num_prompt_tokens: int
    """Pictures included."""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, finish: str, num_tokens: int) -> dict[str, Any]:
        """A `chat.completion`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return self._object("chat.completion", [choice]) | {"usage": self._usage(num_tokens)}

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        """A `chat.completion.chunk` as a server-sent event."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(self._object("chat.completion.chunk", [choice]))

    def usage_chunk(self, num_tokens: int) -> bytes:
        """The last chunk of a stream that ends with the counts."""
        return event(self._object("chat.completion.chunk", []) | {"usage": self._usage(num_tokens)})

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _usage(self, num_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": self.num_prompt_tokens + num_tokens,
        }


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def models(model: str, created: int) -> dict[str, Any]:
    """The list of the one model."""
    return {"object": "list", "data": [model_card(model, created)]}


def model_card(model: str, created: int) -> dict[str, Any]:
    """The one model."""
    return {"id": model, "object": "model", "created": created, "owned_by": "mmexp"}
