"""Pictures to several views: what the tiling rules decide, as pixels, slots and the place of each soft token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mmexp.contracts import Box, Size
from mmexp.prompt.shrink import alone, shrink
from mmexp.prompt.tiles import AnyRes, Cut, DynamicTiles, Grid

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


@runtime_checkable
class SquareTransform(Protocol):
    """What a tiled transform needs of the encoder's own: one square view of a picture."""

    @property
    def size_px(self) -> int: ...

    def __call__(self, image: Any, size: Size | None = None, num_media: int = 1) -> Tensor: ...

    def resize(self, image: Any, new: Size, size: Size | None = None) -> Any: ...

    def window(self, size: Size, num_media: int = 1) -> Box: ...

    def restore(self, values: Tensor) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True)
class TiledTransform:
    """Pictures to their views, float32[views, 3, S, S], and how many slots they take."""

    tiling: DynamicTiles | AnyRes
    view: SquareTransform
    """Makes one view by changing proportions."""
    padded: SquareTransform
    """Makes the single view of a picture that is not cut."""
    num_soft_tokens: int
    """N of one view."""
    soft_grid: Grid | None = None
    """Columns and rows of the N soft tokens; rows and padding need it."""

    def __call__(self, image: Image.Image, size: Size | None = None, num_media: int = 1) -> Tensor:
        """The views in their order. `size` is that of the whole picture where `image` was decoded smaller."""
        import torch

        size = size or image.size
        cut = self._cut(size, num_media)
        if cut is None:
            return self.padded(image, size)[None]
        views = [self.view(tile) for tile in self._tiles(image, size, cut)]
        if cut.whole is not None:
            views.insert(0 if cut.whole == "first" else len(views), self.view(image, size))
        return torch.stack(views)

    def num_views(self, size: Size, num_media: int = 1) -> int:
        """How many views a picture of this size is."""
        cut = self._cut(size, num_media)
        return 1 if cut is None else cut.num_views

    def num_slots(self, size: Size, num_media: int = 1) -> int:
        """How many slots a picture of this size takes in the text."""
        rule, cut = self.tiling, self._cut(size, num_media)
        if isinstance(rule, DynamicTiles) or self.soft_grid is None:
            return self.num_soft_tokens * (1 if cut is None else cut.num_views)
        if cut is None:
            return self.num_soft_tokens + rule.newline
        kept = tuple(map(len, rule.rows(size, cut.grid, self.soft_grid)))
        columns, rows = rule.shrunk((kept[0], kept[1]), self.soft_grid)
        return self.num_soft_tokens + rows * (columns + rule.newline)

    def gather(self, size: Size, num_media: int = 1) -> Tensor | None:
        """int64[slots, 2]: view and place of the soft token in each slot, place -1 for the end of a row; None when the
        soft tokens of all views stand in order. Where `blend` is not None, int64[slots, 4, 2]."""
        found = self._arranged(size, num_media)
        return None if found is None else found[0]

    def blend(self, size: Size, num_media: int = 1) -> Tensor | None:
        """float32[slots, 4], the share of each soft token in its slot; None where every slot holds one."""
        found = self._arranged(size, num_media)
        return None if found is None else found[1]

    def _arranged(self, size: Size, num_media: int) -> tuple[Tensor, Tensor | None] | None:
        """`gather` and `blend`."""
        import torch

        rule, cut = self.tiling, self._cut(size, num_media)
        if isinstance(rule, DynamicTiles) or self.soft_grid is None:
            return None
        places = torch.arange(self.num_soft_tokens)
        whole, end = torch.stack([torch.zeros_like(places), places], 1), torch.tensor([[0, -1]])
        if cut is None:
            found = torch.cat([whole, end]) if rule.newline else whole
            return (found, None) if rule.max_views is None else alone(found)
        columns, rows = rule.rows(size, cut.grid, self.soft_grid)
        canvas = self._canvas(torch.arange(columns.start, columns.stop), torch.arange(rows.start, rows.stop), cut.grid)
        ends = end.expand(len(rows), 1, 2) if rule.newline else end[:0].expand(len(rows), 0, 2)
        if rule.max_views is None:
            return torch.cat([whole, torch.cat([canvas, ends], 1).flatten(0, 1)]), None
        new = rule.shrunk((len(columns), len(rows)), self.soft_grid)
        mixed = alone(canvas) if new == (len(columns), len(rows)) else shrink(canvas, new)
        pieces = zip(mixed, alone(ends[: new[1]]), strict=True)
        lines = [torch.cat(pair, 1).flatten(0, 1) for pair in pieces]
        gather, blend = (torch.cat(pair) for pair in zip(alone(whole), lines, strict=True))
        return gather, blend

    def _canvas(self, columns: Tensor, rows: Tensor, grid: Grid) -> Tensor:
        """int64[rows, columns, 2], view and place of each soft token of the canvas."""
        import torch

        assert self.soft_grid is not None
        across, down = self.soft_grid
        view = 1 + (rows // down)[:, None] * grid[0] + (columns // across)[None]
        return torch.stack([view, (rows % down)[:, None] * across + (columns % across)[None]], 2)

    def window(self, size: Size, num_media: int = 1) -> Box:
        """The frame that boxes are written in: the whole picture, or the padded square of a single view."""
        return self.padded.window(size) if self._cut(size, num_media) is None else (0.0, 0.0, 1.0, 1.0)

    def windows(self, size: Size, num_media: int = 1) -> tuple[Box, ...]:
        """What each view shows, in shares of the picture; beyond 0 to 1 it is black."""
        cut = self._cut(size, num_media)
        if cut is None:
            return (self.padded.window(size),)
        left, top, width, height = cut.content
        shown = [
            ((x - left) / width, (y - top) / height, (x + step - left) / width, (y + step - top) / height)
            for x, y, step in _corners(cut.grid, self.view.size_px)
        ]
        if cut.whole is not None:
            shown.insert(0 if cut.whole == "first" else len(shown), (0.0, 0.0, 1.0, 1.0))
        return tuple(shown)

    def reduction(self, size: Size, num_media: int = 1) -> int:
        """By which of 1, 2, 4 and 8 a picture may be decoded smaller: twice the pixels of its place on the canvas."""
        cut = self._cut(size, num_media)
        if cut is None:
            return 1
        wanted = [2 * max(length, self.view.size_px) for length in cut.content[2:]]
        return next((f for f in (8, 4, 2) if all(s >= f * w for s, w in zip(size, wanted, strict=True))), 1)

    def restore(self, values: Tensor) -> Image.Image:
        """All views side by side, for looking at them."""
        from PIL import Image

        views = [self.view.restore(view) for view in values]
        strip = Image.new("RGB", (sum(view.width for view in views), views[0].height))
        for number, view in enumerate(views):
            strip.paste(view, (number * view.width, 0))
        return strip

    def _cut(self, size: Size, num_media: int) -> Cut | None:
        return self.tiling.cut(size, self.view.size_px, num_media)

    def _tiles(self, image: Any, size: Size, cut: Cut) -> Iterator[Any]:
        from PIL import Image

        left, top, width, height = cut.content
        step = self.view.size_px
        canvas = self.view.resize(image, (width, height), size)
        if (width, height) != (cut.grid[0] * step, cut.grid[1] * step):
            black = Image.new("RGB", (cut.grid[0] * step, cut.grid[1] * step))
            black.paste(canvas, (left, top))
            canvas = black
        for x, y, _ in _corners(cut.grid, step):
            yield canvas.crop((x, y, x + step, y + step))


def _corners(grid: Grid, step: int) -> Iterator[tuple[int, int, int]]:
    """Left, top and side of every tile, row by row."""
    for row in range(grid[1]):
        for column in range(grid[0]):
            yield column * step, row * step, step
