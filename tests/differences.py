"""Comparisons that are remembered, so that the largest differences can be shown in one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch

COLUMNS = ("class", "quantity", "largest difference", "largest value", "tolerance")


@dataclass(frozen=True)
class Row:
    """The worst of all comparisons of one kind."""

    distance: float
    largest: float | None
    """Of the reference; None for tokens."""
    tolerance: str


class Differences:
    """Called as `differences(class, quantity, ours, theirs, tolerance)`; fails where they differ by more."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}

    def __call__(
        self,
        cls: str,
        quantity: str,
        ours: torch.Tensor,
        theirs: torch.Tensor,
        tolerance: float = 1e-4,
        relative: float = 0.0,
    ) -> None:
        """Both must agree within `tolerance + relative * |theirs|`, entry by entry."""
        ours, theirs = ours.detach(), theirs.detach()
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=relative,
                                   msg=lambda text: f"{cls}, {quantity}: {text}")  # fmt: skip
        distance = float((ours - theirs).abs().max()) if ours.numel() else 0.0
        largest = float(theirs.abs().max()) if theirs.numel() else 0.0
        allowed = f"{tolerance:g} + {relative:g} of it" if relative else f"{tolerance:g}"
        self._keep(cls, quantity, Row(distance, largest, allowed))

    def tokens(self, cls: str, quantity: str, ours: Sequence[Any], theirs: Sequence[Any]) -> None:
        """Token ids, or the texts of them, must be equal."""
        assert ours == theirs, f"{cls}, {quantity}"
        self._keep(cls, quantity, Row(0.0, None, "equal"))

    def plain(self) -> list[list[Any]]:
        """All rows as lists, for another process."""
        return [[*names, *astuple(row)] for names, row in self.rows.items()]

    def add(self, plain: Iterable[Sequence[Any]]) -> None:
        """Takes the rows of another process."""
        for cls, quantity, *row in plain:
            self._keep(cls, quantity, Row(*row))

    def table(self) -> list[str]:
        """One line a class and quantity, in the order of the first comparison."""
        cells = [COLUMNS]
        for (cls, quantity), row in self.rows.items():
            largest = "" if row.largest is None else f"{row.largest:.3g}"
            cells.append((cls, quantity, f"{row.distance:.2g}", largest, row.tolerance))
        widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells]
        return [line.rstrip() for line in lines]

    def _keep(self, cls: str, quantity: str, row: Row) -> None:
        before = self.rows.get((cls, quantity))
        if before is None or row.distance >= before.distance:
            self.rows[cls, quantity] = row
