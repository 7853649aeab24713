"""What the pictures and tables are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the image's width and height, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One graded sample."""

    prompt: str
    prediction: str
    target: str
    image: Image.Image | None = None
    """None when the sample has none or its file is gone."""
    title: str = ""
    """Benchmark and question type."""
    right: bool | None = None
    """None where the score is a matter of degree."""
    score: float | None = None
    blind: str | None = None
    """What the model answered without seeing the image."""
    target_box: Box | None = None
    predicted_box: Box | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of what the model reads: text, or the slots of one medium."""

    text: str = ""
    supervised: bool = False
    """Whether its tokens carry loss."""
    slot: str = ""
    """Modality of a run of slots; `text` is not shown then."""
    length: int = 0
    """Number of slots."""

    @property
    def shown(self) -> str:
        """Text as it is, slots folded: `[image x576]`."""
        return f"[{self.slot} x{self.length}]" if self.slot else self.text


@dataclass(frozen=True, kw_only=True)
class PreviewEntry:
    """One sample as the model will see it."""

    id: str
    images: Sequence[Image.Image]
    """Transformed, with the normalisation undone."""
    pieces: Sequence[Piece]
    counts: str
    """One line, such as `812 tokens, 576 slots, 31 supervised`."""
