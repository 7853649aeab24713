"""What a processor asks of the order of turns, and how a conversation is cut."""

from __future__ import annotations

from collections.abc import Sequence

from mmexp.contracts import Medium, Sample, Turn
from mmexp.errors import DataError


def describe(sample: Sample) -> str:
    """Dataset and id of a sample, for messages."""
    return f"{sample.dataset}, sample {sample.id!r}" if sample.dataset else f"sample {sample.id!r}"


def media_of(turns: Sequence[Turn]) -> tuple[Medium, ...]:
    """All media, in reading order."""
    return tuple(medium for turn in turns for medium in turn.media)


def check_roles(sample: Sample) -> None:
    """Raises DataError unless the turns are: perhaps a system turn, then user and assistant in alternation."""
    roles = [turn.role for turn in sample.turns]
    body = roles[1:] if roles[:1] == ["system"] else roles
    if body != [("user", "assistant")[index % 2] for index in range(len(body))]:
        raise DataError(
            f"turns in the order {', '.join(roles)}",
            expected="user and assistant in alternation, at most one system turn before them",
            where=describe(sample),
            fix="merge neighbouring turns of one speaker",
        )


def exchanges_of(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Groups of turns that are kept or cut together; the first one includes the system turn."""
    groups: list[list[Turn]] = [[]]
    for turn in turns:
        if turn.role == "user" and any(other.role == "user" for other in groups[-1]):
            groups.append([])
        groups[-1].append(turn)
    return groups


def join(exchanges: Sequence[Sequence[Turn]]) -> list[Turn]:
    """The turns of all exchanges."""
    return [turn for exchange in exchanges for turn in exchange]
