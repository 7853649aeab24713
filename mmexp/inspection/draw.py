"""Heat maps over pictures as PNG files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from mmexp.inspection.colours import DIM, palette
from mmexp.inspection.look import Inside, look_inside
from mmexp.inspection.place import inside, union

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.contracts import Box, Sample
    from mmexp.model import MultimodalModel, Plan

KINDS = ("tokens", "layers", "queries")
"""The sheets of one sample: attention of each answer token, the same in each layer, what each query reads."""
_FEW_TOKENS = 12
_SIDE = 220
_GAP = 10
_LINE = 18
_PAPER, _INK, _PADDING = (255, 255, 255), (20, 20, 19), (90, 89, 85)
_COLUMNS = 6


def overlay(picture: Image.Image, window: Box, heat: Tensor, top: float, side_px: int = _SIDE) -> Image.Image:
    """A picture under a heat map, at most `side_px` wide and high; what the view shows beside the picture is grey.

    Args:
        picture: Upright.
        window: What the map covers, in shares of the picture.
        heat: float[rows, columns]
        top: The value of the strongest colour.
        side_px: The longer side.
    """
    frame = union(window)
    width, height = picture.width * (frame[2] - frame[0]), picture.height * (frame[3] - frame[1])
    scale = side_px / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.new("RGB", size, _PADDING)
    left, upper, right, lower = _pixels(inside((0.0, 0.0, 1.0, 1.0), frame), size)
    small = picture.convert("RGB").resize((right - left, lower - upper))
    canvas.paste(ImageEnhance.Brightness(small).enhance(DIM), (left, upper))
    levels = (255 * (heat.float() / max(top, 1e-12)).clamp(0, 1)).round().byte().numpy()
    left, upper, right, lower = _pixels(inside(window, frame), size)
    colours = Image.fromarray(np.ascontiguousarray(palette()[levels]), "RGBA")
    colours = colours.resize((right - left, lower - upper), Image.Resampling.NEAREST)
    canvas.paste(colours, (left, upper), colours)
    return canvas


def sheet(panels: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Panels with a line of text below each, in rows."""
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    height = max(image.height for image, _ in panels) + _LINE + _GAP
    canvas = Image.new("RGB", (columns * (_SIDE + _GAP) + _GAP, lines * height + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for number, (image, text) in enumerate(panels):
        x, y = _GAP + number % columns * (_SIDE + _GAP), _GAP + number // columns * height
        canvas.paste(image, (x, y))
        draw.text((x, y + image.height + 2), _fitting(text, font), fill=_INK, font=font)
    return canvas


def write_pictures(found: Inside, folder: Path, kinds: Collection[str] = KINDS) -> list[Path]:
    """`<id>_tokens.png`, `<id>_layers.png` and `<id>_queries.png`, as far as there is something to draw."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in found.id)[:80]
    written = []
    for name, panels in zip(KINDS, (_tokens(found), _layers(found), _queries(found)), strict=True):
        drawn = list(panels) if name in kinds else []
        if drawn:
            written.append(folder / f"{stem}_{name}.png")
            sheet(drawn).save(written[-1])
    return written


def draw_attention(model: MultimodalModel, plan: Plan, sample: Sample, folder: Path) -> list[Path]:
    """Lets the model answer, and draws what each answer token takes from the picture, as `write_pictures` does.

    Raises:
        ConfigError, DataError: as `look_inside`.
    """
    found = look_inside(model, plan, sample, max_new_tokens=_FEW_TOKENS, num_words=1, num_lens_layers=1)
    return write_pictures(found, folder, KINDS[:1])


def _tokens(found: Inside) -> Iterator[tuple[Image.Image, str]]:
    """The mean over layers and heads, per answer token."""
    if found.over_picture is not None:
        for token, maps in zip(found.tokens, found.over_picture.mean((1, 2)), strict=True):
            yield from _views(found, maps, token)


def _layers(found: Inside) -> Iterator[tuple[Image.Image, str]]:
    """The mean over tokens and heads, per layer."""
    if found.over_picture is not None:
        for layer, maps in enumerate(found.over_picture.mean((0, 2))):
            yield from _views(found, maps, f"layer {layer}")


def _queries(found: Inside) -> Iterator[tuple[Image.Image, str]]:
    """The mean over layers and heads, per query."""
    if found.queries is not None:
        for number, maps in enumerate(found.queries.mean((1, 2)).transpose(0, 1)):
            yield from _views(found, maps, f"query {number}: {found.near[number][0][0]}")


def _views(found: Inside, maps: Tensor, text: str) -> Iterator[tuple[Image.Image, str]]:
    """One map, float[M, G], a panel for each view; all with the same scale."""
    assert found.grid is not None
    top = float(maps.max())
    for number, (view, values) in enumerate(zip(found.views, maps, strict=True)):
        name = f"{text} (view {number})" if len(found.views) > 1 else text
        heat = values.unflatten(0, found.grid)
        yield overlay(found.pictures[view.picture], view.window, heat, top), f"{name}  max {top:.2g}"


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, upper, right, lower = (round(share * length) for share, length in zip(box, size * 2, strict=True))
    return left, upper, max(right, left + 1), max(lower, upper + 1)


def _fitting(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """As much of a text as fits under a panel."""
    while text and font.getlength(text) > _SIDE:
        text = text[:-2] + "\u2026" if len(text) > 2 else ""
    return text
