"""How a picture is cut into views: published rules that need nothing but its size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from mmexp.contracts import Size
from mmexp.errors import ConfigError

Grid = tuple[int, int]
"""Columns and rows."""
NEXT_GRIDS: tuple[Grid, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""LLaVA-NeXT as released: (336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008) pixels, width first."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a picture lies on a canvas of tiles."""

    grid: Grid
    """Tiles in a row, and rows."""
    content: tuple[int, int, int, int]
    """Left, top, width and height of the resized picture on the canvas, in pixels; the rest is black."""
    whole: Literal["first", "last"] | None = None
    """Where a view of the whole picture stands among the tiles."""

    @property
    def num_views(self) -> int:
        """Tiles, and the view of the whole."""
        return self.grid[0] * self.grid[1] + (self.whole is not None)


@dataclass(frozen=True, kw_only=True)
class DynamicTiles:
    """InternVL's tiles: the picture is stretched to the grid nearest to its proportions; a small view of it comes last.

    Source: OpenGVLab/InternVL @ 2410d1d internvl_chat/internvl/train/dataset.py dynamic_preprocess.
    """

    min_tiles: int = 1
    """Least number of tiles."""
    max_tiles: int = 12
    """Largest number of tiles of one picture; the pictures of a conversation share it."""
    thumbnail: bool = True
    """Whether several tiles are followed by a view of the whole."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ConfigError(
                f"{self.min_tiles} to {self.max_tiles} tiles", expected="1 <= min_tiles <= max_tiles",
                where="processor.tiles",
            )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.min_tiles} to {self.max_tiles} tiles" + (" and a thumbnail" if self.thumbnail else "")

    def cut(self, size: Size, tile_px: int, num_media: int = 1) -> Cut:
        """The grid whose proportions are nearest; of equally near ones a larger one only if the picture fills half."""
        width, height = size
        most = max(self.min_tiles, self.max_tiles // max(num_media, 1), 1)
        best, nearest = (1, 1), math.inf
        for columns, rows in _grids(self.min_tiles, most):
            distance = abs(width / height - columns / rows)
            fills = width * height > 0.5 * tile_px * tile_px * columns * rows
            if distance < nearest or (distance == nearest and fills):
                best, nearest = (columns, rows), distance
        whole = "last" if self.thumbnail and best != (1, 1) else None
        return Cut(grid=best, content=(0, 0, best[0] * tile_px, best[1] * tile_px), whole=whole)


@dataclass(frozen=True, kw_only=True)
class AnyRes:
    """LLaVA-NeXT's tiles: the picture keeps its proportions on a black canvas, and a squashed view of it comes first.

    In the text stand the soft tokens of the whole, then those of the canvas row by row without its padding, each row
    with a learned vector behind it. Source: haotian-liu/LLaVA @ c121f04 llava/mm_utils.py, llava/model/llava_arch.py.
    """

    grids: tuple[Grid, ...] = NEXT_GRIDS
    """Columns and rows of the canvases to choose from; of equally good ones the first is taken."""
    unpad: bool = True
    """Whether soft tokens of the padding are left out."""
    newline: bool = True
    """Whether a learned vector ends every row of soft tokens."""
    max_views: int | None = None
    """`anyres_max_N` of LLaVA-OneVision: a canvas with more soft tokens than so many views have (by a factor above
    1.1 a side) is shrunk to as many, bilinearly; null for no limit. The view of the whole is not counted."""

    def __post_init__(self) -> None:
        if self.max_views is not None and self.max_views < 1:
            raise ConfigError(f"{self.max_views}", expected="at least 1, or null for no limit",
                              where="processor.anyres.max_views")  # fmt: skip
        if not self.grids or any(min(grid) < 1 for grid in self.grids):
            raise ConfigError(f"{list(self.grids)}", expected="at least one grid of [columns, rows], each 1 or more",
                              where="processor.anyres.grids")  # fmt: skip

    def __str__(self) -> str:
        limit = f", at most the soft tokens of {self.max_views} views" if self.max_views else ""
        return "anyres on grids of " + ", ".join(f"{columns} x {rows}" for columns, rows in self.grids) + limit

    def cut(self, size: Size, tile_px: int, num_media: int = 1) -> Cut | None:
        """The canvas that keeps most of the picture's pixels, then wastes least; None for a single padded view, which
        each of several pictures gets."""
        if num_media > 1:
            return None
        width, height = size
        best, rank = self.grids[0], (-1, 0)
        for columns, rows in self.grids:
            canvas = (columns * tile_px, rows * tile_px)
            scale = min(canvas[0] / width, canvas[1] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            if (kept, kept - canvas[0] * canvas[1]) > rank:
                best, rank = (columns, rows), (kept, kept - canvas[0] * canvas[1])
        return Cut(grid=best, content=_fitted(size, (best[0] * tile_px, best[1] * tile_px)), whole="first")

    def rows(self, size: Size, grid: Grid, soft_grid: Grid) -> tuple[range, range]:
        """The columns and rows of the canvas's soft tokens that are not padding.

        Args:
            size: Of the picture.
            grid: Tiles of the canvas.
            soft_grid: Columns and rows of one tile's soft tokens.
        """
        width, height = size
        across, down = grid[0] * soft_grid[0], grid[1] * soft_grid[1]
        if not self.unpad:
            return range(across), range(down)
        if width / height > across / down:
            cut = (down - int(height * (across / width))) // 2
            return range(across), range(cut, down - cut)
        cut = (across - int(width * (down / height))) // 2
        return range(cut, across - cut), range(down)

    def shrunk(self, kept: Grid, soft_grid: Grid) -> Grid:
        """Columns and rows of soft tokens in the text, for so many that are not padding.

        Source: LLaVA-VL/LLaVA-NeXT llava/model/llava_arch.py, and transformers' llava_onevision, which agree.
        """
        if self.max_views is None:
            return kept
        times = math.sqrt(kept[0] * kept[1] / (self.max_views * soft_grid[1] ** 2))
        return kept if times <= 1.1 else (max(int(kept[0] // times), 1), max(int(kept[1] // times), 1))


@lru_cache(maxsize=64)
def _grids(least: int, most: int) -> tuple[Grid, ...]:
    """All grids of `least` to `most` tiles, small ones first."""
    found = [(c, r) for c in range(1, most + 1) for r in range(1, most // c + 1) if c * r >= least]
    return tuple(sorted(found, key=lambda grid: (grid[0] * grid[1], grid[0])))


def _fitted(size: Size, canvas: Size) -> tuple[int, int, int, int]:
    """Left, top, width and height of a picture in the middle of a canvas that it fills in one direction."""
    width, height = size
    across, down = canvas[0] / width, canvas[1] / height
    if across < down:
        new = (canvas[0], min(math.ceil(height * across), canvas[1]))
    else:
        new = (min(math.ceil(width * down), canvas[0]), canvas[1])
    return (canvas[0] - new[0]) // 2, (canvas[1] - new[1]) // 2, *new
