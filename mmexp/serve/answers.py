"""The answers of one batch while they are made: their text, their ends, and whether the batch decided a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from mmexp.llm.generation import TextStream

if TYPE_CHECKING:
    from torch import Tensor

Finish = Literal["stop", "length", "left", "again"]
"""Why an answer ends: it is complete, it is as long as it may be, nobody waits for it, or it must be made alone."""
_ROUNDINGS = 256
"""How far apart, in units of rounding of the largest score, two tokens must be so that no batch can swap them."""


class Answer:
    """One row of a batch.

    Args:
        tokenizer: Of the LLM.
        on_text: Gets each piece of the text.
        stops: Texts that end it.
        max_tokens: Its limit.
        has_left: Whether nobody waits for it any more.
        shown: Text that `on_text` got already.
    """

    def __init__(
        self,
        tokenizer: Any,
        on_text: Callable[[str], None],
        stops: Sequence[str],
        max_tokens: int,
        has_left: Callable[[], bool],
        shown: str = "",
    ) -> None:
        self._stream = TextStream(tokenizer, on_text, stops, shown)
        self._max_tokens, self._has_left = max_tokens, has_left
        self.finish: Finish | None = None

    @property
    def text(self) -> str:
        """What was handed out; the whole answer once it is finished."""
        return self._stream.shown

    @property
    def num_tokens(self) -> int:
        """Tokens that were made, the one that ends it included."""
        return len(self._stream.ids)

    def take(self, token: int, is_end: bool) -> None:
        """The next token; of a finished answer it counts for nothing."""
        if self.finish is not None:
            return
        if self._has_left():
            self.finish = "left"
            return
        self._stream.add([token])
        if is_end or self._stream.is_stopped:
            self.finish = "stop"
        elif self.num_tokens >= self._max_tokens:
            self.finish = "length"
        if self.finish is not None:
            self._stream.end()

    def close(self) -> None:
        """The model has ended it, by whatever rule."""
        if self.finish is None:
            self.finish = "stop"
            self._stream.end()


class Answers:
    """What watches the model while it makes the answers of a batch (`mmexp.llm.Watch`).

    Args:
        rows: The answers.
        ends: Tokens that end one.
        rounding: Of the numbers that the model computes with; None lets the batch decide between close tokens.
    """

    def __init__(self, rows: Sequence[Answer], ends: Sequence[int], rounding: float | None) -> None:
        self.rows, self._ends, self._rounding = rows, frozenset(ends), rounding

    def look(self, scores: Tensor) -> None:
        """float[B, V]: a row whose two best tokens are as close as rounding has to be made alone."""
        if self._rounding is None:
            return
        scores = scores.float()
        best = scores.topk(2).values
        size = scores.masked_fill(scores.isinf(), 0).abs().amax(1)
        close = best[:, 0] - best[:, 1] <= _ROUNDINGS * self._rounding * size
        for row, is_close in zip(self.rows, close.tolist(), strict=True):
            if is_close and row.finish is None:
                row.finish = "again"

    def take(self, ids: Tensor) -> Tensor:
        """int64[B], the chosen tokens, to bool[B], the rows that have ended."""
        for row, token in zip(self.rows, ids.tolist(), strict=True):
            row.take(token, token in self._ends)
        return torch.tensor([row.finish is not None for row in self.rows], device=ids.device)
