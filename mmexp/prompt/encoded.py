"""A conversation as tokens: what `SegmentTokenizer` fills."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from mmexp.contracts import MediaRun


@dataclass
class Encoded:
    """Ids, supervision and slots of one conversation; the three grow together and so cannot drift apart."""

    ids: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    runs: list[MediaRun] = field(default_factory=list)
    num_cut_tokens: int = 0
    """Tokens that `limit_answers` took away."""

    def append(self, ids: Iterable[int], supervised: Iterable[bool]) -> None:
        """Adds tokens with their supervision."""
        self.ids += ids
        self.supervised += supervised

    def limit_answers(self, longest: int | None, side: Literal["right", "left", "before_end"]) -> None:
        """Cuts every stretch of supervised tokens to `longest` tokens and counts what is gone.

        Args:
            longest: None for no limit.
            side: Which end of a stretch is cut; `before_end` cuts in front of its last token.
        """
        if longest is None:
            return
        kept: list[int] = []
        for supervised, group in groupby(range(len(self.ids)), key=self.supervised.__getitem__):
            places = list(group)
            if supervised and len(places) > longest:
                places = {
                    "right": places[:longest],
                    "left": places[-longest:],
                    "before_end": [*places[: longest - 1], places[-1]],
                }[side]
            kept += places
        cut = len(self.ids) - len(kept)
        self.num_cut_tokens += cut
        if cut:
            place = {old: new for new, old in enumerate(kept)}
            self.runs = [MediaRun(modality=r.modality, start=place[r.start], length=r.length) for r in self.runs]
            self.ids, self.supervised = [self.ids[at] for at in kept], [self.supervised[at] for at in kept]
