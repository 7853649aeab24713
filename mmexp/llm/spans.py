"""Which positions of a batch see which, as stretches that one call of attention takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

Lengths = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Span:
    """A segment, or all segments that go on from the segment in front of them."""

    length: int
    branches: tuple[int, ...] = ()
    """Lengths of the segments that go on from the span in front: each sees that span and itself. Empty for a segment
    that sees nothing but itself."""
    beginning: int = 0
    """Length of the span in front, of branches."""


class Spans:
    """Rows of T columns as spans, from left to right; what lies behind a row's last span is padding.

    Args:
        segment_lengths: Per row the lengths of its segments.
        num_columns: T
        followers: Per row and segment how many of the segments behind it go on from it; empty where none does.
    """

    def __init__(self, segment_lengths: Lengths, num_columns: int, followers: Lengths = ()) -> None:
        self.num_columns = num_columns
        self.rows = tuple(
            tuple(_spans(lengths, followers[row] if followers else ())) for row, lengths in enumerate(segment_lengths)
        )
        self._masks: dict[tuple[Span, torch.device], Tensor] = {}

    @property
    def have_branches(self) -> bool:
        """Whether any segment sees another one."""
        return any(span.branches for row in self.rows for span in row)

    @property
    def sizes(self) -> list[int]:
        """Lengths of the spans of every row, each row with the padding behind them."""
        return [
            size
            for row in self.rows
            for size in (*(span.length for span in row), self.num_columns - sum(span.length for span in row))
        ]

    def split(self, values: Tensor) -> Iterator[Tensor]:
        """float[B, heads, T, head width] to float[1, heads, t, head width] of every span and of each row's rest."""
        flat = values.transpose(1, 2).flatten(0, 1)  # one split and no slices: its gradient is one concatenation
        return (piece.transpose(0, 1)[None] for piece in flat.split(self.sizes))

    def split_seen(self, values: Tensor) -> Iterator[Tensor]:
        """As `split`, of what each span sees: branches see the span in front of them, too."""
        pieces = self.split(values)
        for row in self.rows:
            front = None
            for span in row:
                own = next(pieces)
                yield own if front is None or not span.branches else torch.cat([front, own], dim=2)
                front = own
            yield next(pieces)  # padding

    def mask(self, span: Span, device: torch.device) -> Tensor:
        """bool[t, beginning + t] of branches: what each position sees of the span in front and of its own span."""
        key = span, device
        if key not in self._masks:
            owners = torch.arange(len(span.branches)).repeat_interleave(torch.tensor(span.branches))
            own = (owners[:, None] == owners).tril()
            front = torch.ones(span.length, span.beginning, dtype=torch.bool)
            self._masks[key] = torch.cat([front, own], dim=1).to(device)
        return self._masks[key]


def _spans(lengths: Sequence[int], followers: Sequence[int]) -> Iterator[Span]:
    """The spans of one row."""
    at = 0
    while at < len(lengths):
        count = followers[at] if followers else 0
        yield Span(lengths[at])
        if count:
            branches = tuple(lengths[at + 1 : at + 1 + count])
            yield Span(sum(branches), branches, lengths[at])
        at += 1 + count
