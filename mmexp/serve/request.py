"""From the JSON of a request to a conversation and how it is to be answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mmexp.contracts import Medium, Part, Sample, Text, Turn
from mmexp.data import MessagesConfig
from mmexp.data.readers.parts import PLACEHOLDER
from mmexp.errors import DataError
from mmexp.llm import Sampling
from mmexp.serve.errors import ApiError, invalid
from mmexp.serve.settings import ServeConfig

_READER = MessagesConfig(path="request")
_NUMBERS: Mapping[str, tuple[type, float, float, Any]] = {
    "temperature": (float, 0, 2, 0.0),
    "top_p": (float, 1e-6, 1, 1.0),
    "repetition_penalty": (float, 0.01, 10, 1.0),
    "seed": (int, 0, 2**63 - 1, None),
}
"""Field, type, lowest and highest value, and what is taken where it is absent."""
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that are not supported, and the values with which they change nothing."""
_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
_OWN = ("model", "messages", "max_tokens", "max_completion_tokens", "stop", "stream", "stream_options")
_MAX_STOPS = 4


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A conversation that ends with a user turn, and how it is to be answered."""

    sample: Sample
    temperature: float
    top_p: float
    repetition_penalty: float
    seed: int | None
    """Makes a sampled answer repeatable; None draws one."""
    max_tokens: int | None
    """Longest answer; None takes the server's limit, or what room there is."""
    stops: tuple[str, ...]
    """Texts that end the answer besides the template's."""
    stream: bool
    include_usage: bool
    """Whether a stream ends with the token counts."""

    def sampling(self, max_tokens: int) -> Sampling:
        """How an answer of at most so many tokens is chosen."""
        return Sampling(
            max_new_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed if self.temperature > 0 else None,
        )


def read_request(body: bytes, model: str, config: ServeConfig) -> ChatRequest:
    """The request of a body.

    Args:
        body: As it came.
        model: Name of the model that is served.
        config: The limits.

    Raises:
        ApiError: it is no JSON, asks for another model, or a field is wrong, unknown or not supported.
    """
    fields = _json(body)
    if "model" not in fields:
        raise invalid(f"`model` is missing; this server has {model!r}", "model", "missing")
    if fields["model"] != model:
        asked = repr(fields["model"])[:100]
        raise ApiError(404, f"no model {asked} here; this server has {model!r}", "model_not_found", "model")
    _refuse_unknown(fields)
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict):
        raise invalid("`stream_options` is no object", "stream_options")
    return ChatRequest(
        sample=Sample(id="prompt", turns=_turns(fields.get("messages"), config)),
        **read_sampling(fields, config),
        stops=_stops(fields.get("stop")),
        stream=_flag(fields, "stream"),
        include_usage=_flag(options, "include_usage"),
    )


def read_sampling(fields: Mapping[str, Any], config: ServeConfig) -> dict[str, Any]:
    """`temperature`, `top_p`, `repetition_penalty`, `seed` and `max_tokens` of a `ChatRequest`.

    Raises:
        ApiError: one is out of its range.
    """
    numbers = {name: _number(fields, name, *rule) for name, rule in _NUMBERS.items()}
    return numbers | {"max_tokens": _max_tokens(fields, config)}


def _json(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
        if b"\\ud" in body.lower():  # half of a pair of surrogates is no text, and no tokenizer takes it
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is no JSON ({error})"[:200], code="invalid_json") from None
    if not isinstance(fields, dict):
        raise invalid("the body is no JSON object", code="invalid_json")
    return fields


def _refuse_unknown(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in _ONLY and value is not None and value not in _ONLY[name]:
            allowed = " or ".join(json.dumps(one) for one in _ONLY[name])
            raise invalid(f"`{name}` is not supported: leave it out, or {allowed}", name, "unsupported_parameter")
        if name not in (*_OWN, *_NUMBERS, *_ONLY, *_IGNORED):
            raise invalid(f"unknown field `{name[:60]}`", name[:60], "unknown_parameter")


def _number(fields: Mapping[str, Any], name: str, kind: type, low: float, high: float, default: Any) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    is_number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # NaN is in no range
        shape = "a number" if kind is float else "a whole number"
        raise invalid(f"`{name}` is {repr(value)[:60]}: expected {shape} from {low:g} to {high:g}", name)
    return kind(value)


def _max_tokens(fields: Mapping[str, Any], config: ServeConfig) -> int | None:
    names = [name for name in ("max_completion_tokens", "max_tokens") if fields.get(name) is not None]
    return _number(fields, names[0], int, 1, config.max_tokens, None) if names else None


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(f"`{name}` is {repr(value)[:60]}: expected true or false", name)
    return bool(value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    good = isinstance(stops, list) and all(isinstance(one, str) and 0 < len(one) <= 100 for one in stops)
    if not good or len(stops) > _MAX_STOPS:
        raise invalid(f"`stop` must be a text, or up to {_MAX_STOPS} of them, each of 1 to 100 characters", "stop")
    return tuple(stops)


def _turns(messages: Any, config: ServeConfig) -> tuple[Turn, ...]:
    """The conversation; pictures are encoded bytes that nobody has looked at yet."""
    if not isinstance(messages, list) or not messages:
        raise invalid("`messages` must be a list of {role, content}, with at least one", "messages")
    if len(messages) > config.max_messages:
        raise invalid(
            f"{len(messages)} messages, and {config.max_messages} are allowed", "messages", "too_many_messages"
        )
    for message in messages:
        _refuse_addresses(message)
    try:
        turns = _READER.parse({"messages": messages}, 0).turns
    except DataError as error:
        expected = f": expected {error.expected}" if error.expected else ""
        raise invalid(f"{error.found}{expected}", "messages") from None
    if turns[-1].role != "user":
        raise invalid("the last message is not of the user, so there is nothing to answer", "messages")
    return tuple(with_pictures_first(turn) for turn in turns)


def _refuse_addresses(message: Any) -> None:
    """Nothing in a request may make the server open a file or an address."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str) and PLACEHOLDER in part["text"]:
            raise invalid(f"a text holds {PLACEHOLDER}: send pictures as parts of type image_url", "messages")
        if kind == "image":
            raise invalid("a part of type image: send pictures as parts of type image_url", "messages")
        if kind == "image_url":
            source = part.get("image_url")
            source = source.get("url") if isinstance(source, dict) else source
            if not isinstance(source, str) or not source.startswith("data:image/") or ";base64," not in source[:100]:
                raise invalid(
                    f"an image_url begins {str(source)[:24]!r}: this server opens no addresses and no files; send the"
                    " picture itself, data:image/png;base64,...", "messages", "unsupported_image_url")  # fmt: skip


def with_pictures_first(turn: Turn) -> Turn:
    """Pictures that stand before or behind all of the text go in front of it, with a line break between, as in
    `mmexp.chat` and in LLaVA's data; pictures between texts stay where they are."""
    kinds = [isinstance(part, Medium) for part in turn.parts]
    if True not in kinds or False not in kinds or sum(a != b for a, b in pairwise(kinds)) > 1:
        return turn
    texts: list[Part] = [part for part in turn.parts if not isinstance(part, Medium)]
    return Turn(role=turn.role, parts=(*turn.media, Text(text="\n"), *texts))
