"""The small language of template formats: literal text and marks in braces, parsed once and checked by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from mmexp.errors import ConfigError

_MARK = re.compile(r"\{\{|\}\}|\{[^{}]+\}|[{}]")
PIECE, LOSS, NO_LOSS = "piece", "loss", "/loss"
_SWITCHES = (PIECE, LOSS, NO_LOSS)
_VALUES = ("turn", "prefix", "medium", "number", "phrase", "boxes", "x1", "y1", "x2", "y2")
Kind = Literal["text", "control", "value", "switch"]


@dataclass(frozen=True)
class Piece:
    """One element of a parsed format: literal text, a control token, the place of a value, or a switch."""

    kind: Kind
    value: str = ""


@lru_cache(maxsize=1024)
def parse_format(text: str) -> tuple[Piece, ...]:
    """Parses a template format such as `"USER: {turn} "`.

    Values: `{turn}` is what was said, `{prefix}` the first words of an answer, which its `{turn}` then lacks,
    `{medium}` the slots of a medium, `{number}` its place in the conversation from 1, and `{phrase}`, `{boxes}`,
    `{x1}`, `{y1}`, `{x2}`, `{y2}` belong to regions. Control tokens: `{bos}` and `{eos}` by role, any other name in
    braces (`{<|im_start|>}`) by its literal name; with a question mark (`{bos?}`) nothing is written for a tokenizer
    that lacks it. Switches: `{piece}` tokenises what follows on its own, as at the start of a text; `{loss}` and
    `{/loss}` turn supervision on and off until the end of the format. `{{` and `}}` are braces.

    Raises:
        ConfigError: a brace that belongs to no mark.
    """
    pieces: list[Piece] = []
    end = 0
    for mark in _MARK.finditer(text):
        pieces.append(Piece("text", text[end : mark.start()]))
        end = mark.end()
        found = mark.group()
        if found in ("{{", "}}"):
            pieces.append(Piece("text", found[0]))
        elif found in ("{", "}"):
            raise ConfigError(
                f"lone {found!r} in the format {text!r}",
                expected="{turn}, {bos}, {eos}, {<special token>}, or {{ and }} for plain braces",
                fix=f"write {found * 2} for a plain brace",
            )
        else:
            name = found[1:-1]
            kind: Kind = "value" if name in _VALUES else "switch" if name in _SWITCHES else "control"
            pieces.append(Piece(kind, name))
    pieces.append(Piece("text", text[end:]))
    return tuple(piece for piece in pieces if piece != Piece("text"))


def controls_of(*formats: str) -> tuple[str, ...]:
    """Names of the control tokens in these formats, each once; an optional one keeps its question mark."""
    pieces = (piece for text in formats for piece in parse_format(text))
    return tuple(dict.fromkeys(piece.value for piece in pieces if piece.kind == "control"))


def check_format(text: str, where: str, values: Mapping[str, bool], switches: bool = True) -> None:
    """Raises ConfigError unless the format can be parsed and holds each value at most once, the required ones exactly.

    Args:
        text: The format.
        where: Config path, for messages.
        values: What may stand in it, and whether it must.
        switches: Whether `{piece}`, `{loss}` and `{/loss}` may stand in it.
    """
    try:
        pieces = parse_format(text)
    except ConfigError as error:
        raise ConfigError(error.found, expected=error.expected, where=where, fix=error.fix) from None
    for name in _VALUES:
        count = sum(piece == Piece("value", name) for piece in pieces)
        if name not in values and count:
            raise ConfigError(f"{count} {{{name}}} in {text!r}", expected=f"no {{{name}}}", where=where)
        if name in values and (count > 1 or (values[name] and not count)):
            expected = f"exactly one {{{name}}}" if values[name] else f"at most one {{{name}}}"
            raise ConfigError(f"{count} {{{name}}} in {text!r}", expected=expected, where=where)
    wrong = [piece.value for piece in pieces if piece.kind == "switch"]
    if wrong and not switches:
        raise ConfigError(f"{{{wrong[0]}}} in {text!r}", expected="text, values and control tokens only", where=where)
