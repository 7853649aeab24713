"""Contact sheets: many samples on one PNG, legible without a browser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmexp.report.entries import Box, Entry, PreviewEntry
from mmexp.whole import writing

Colour = tuple[int, int, int]

INK, SOFT, PAPER, CARD = (20, 20, 19), (100, 99, 94), (241, 240, 236), (255, 255, 255)
RIGHT, WRONG, SUPERVISED = (25, 98, 184), (196, 78, 21), (13, 122, 62)

_PAD, _GAP, _SIZE = 12, 14, 15


@dataclass(frozen=True)
class _Placed:
    """A word and where it goes, in pixels from the corner of its block."""

    x: float
    y: int
    text: str
    colour: Colour
    size: int


def contact_sheet(entries: Sequence[Entry], path: Path, columns: int = 6, width: int = 264) -> Path:
    """Draws graded samples side by side: image with boxes, question, answer, target, and a mark for right or wrong.

    Args:
        entries: In reading order.
        columns: Cards in a row.
        width: Width of a card in pixels.
    """
    cards = [_entry_card(entry, width) for entry in entries]
    return _save(_tile(cards, min(columns, max(len(cards), 1)), width), path)


def preview_sheet(entries: Sequence[PreviewEntry], path: Path, columns: int = 3, width: int = 440) -> Path:
    """Draws samples as the model will see them: transformed images, text with its supervised part in green, counts."""
    cards = [_preview_card(entry, width) for entry in entries]
    return _save(_tile(cards, min(columns, max(len(cards), 1)), width), path)


def draw_boxes(image: Image.Image, target: Box | None, predicted: Box | None) -> Image.Image:
    """A copy with the target's box drawn solid blue and the predicted one dashed orange, both on a white halo."""
    canvas = image.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    for box, colour, dashed in ((target, RIGHT, False), (predicted, WRONG, True)):
        if box is None:
            continue
        left, top, right, bottom = (
            round(side * (extent - 1)) for side, extent in zip(box, (width, height) * 2, strict=True)
        )
        draw.rectangle((left - 3, top - 3, right + 3, bottom + 3), outline=CARD, width=7)
        if not dashed:
            draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=colour, width=3)
            continue
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        for start, end in pairwise(corners):
            for dash in _dashes(start, end):
                draw.line(dash, fill=colour, width=3)
    return canvas


def _entry_card(entry: Entry, width: int) -> Image.Image:
    inner = width - 2 * _PAD
    image = None if entry.image is None else _fit(entry.image, inner, inner)
    if image is not None:
        image = draw_boxes(image, entry.target_box, entry.predicted_box)
    lines: list[tuple[str, Colour, int, int]] = [
        (entry.title, SOFT, 12, 2),
        (entry.prompt, INK, _SIZE, 5),
        (f"answer: {entry.prediction or '(empty)'}", {True: RIGHT, False: WRONG, None: INK}[entry.right], _SIZE, 5),
        (f"target: {entry.target}", SOFT, _SIZE, 5),
    ]
    blocks = [_layout([(text, colour)], inner, size, limit) for text, colour, size, limit in lines if text]
    card = _card(width, [image] if image is not None else [], blocks, note="" if image is not None else "no image")
    _mark(ImageDraw.Draw(card), entry, width)
    return card


def _preview_card(entry: PreviewEntry, width: int) -> Image.Image:
    inner = width - 2 * _PAD
    each = inner if len(entry.images) == 1 else inner // 2 - 4
    spans = [(p.shown, SOFT if p.slot else SUPERVISED if p.supervised else INK) for p in entry.pieces]
    blocks = [
        _layout([(entry.id, SOFT)], inner, 12, 1),
        _layout(spans, inner, _SIZE, 40),
        _layout([(entry.counts, SOFT)], inner, 13, 3),
    ]
    return _card(width, [_fit(image, each, each) for image in entry.images], blocks, note="text only")


def _card(
    width: int, images: Sequence[Image.Image], blocks: Sequence[tuple[list[_Placed], int]], note: str
) -> Image.Image:
    """Images in one or two columns, then the blocks of text below each other."""
    rows = [images[start : start + 2] for start in range(0, len(images), 2)]
    heights = [max(image.height for image in row) for row in rows] or [40]
    total = _PAD + sum(height + 8 for height in heights) + sum(height + 7 for _, height in blocks) + _PAD
    card = Image.new("RGB", (width, total), CARD)
    draw = ImageDraw.Draw(card)
    y = _PAD
    if not rows:
        draw.rectangle((_PAD, y, width - _PAD, y + 40), fill=PAPER)
        draw.text((width / 2, y + 20), note, fill=SOFT, font=_font(13), anchor="mm")
    for row, height in zip(rows, heights, strict=False):
        x = _PAD if len(images) > 1 else (width - row[0].width) // 2
        for image in row:
            card.paste(image, (x, y))
            x += image.width + 8
        y += height + 8
    y += 0 if rows else 48
    for placed, height in blocks:
        for word in placed:
            draw.text((_PAD + word.x, y + word.y), word.text, fill=word.colour, font=_font(word.size))
        y += height + 7
    return card


def _mark(draw: ImageDraw.ImageDraw, entry: Entry, width: int) -> None:
    """The verdict in the corner: a tick or a cross and a word, so that colour alone never tells."""
    if entry.right is None and entry.score is None:
        return
    word = f"{entry.score:.2f}" if entry.right is None else "right" if entry.right else "wrong"
    colour = SOFT if entry.right is None else RIGHT if entry.right else WRONG
    lead = 0 if entry.right is None else 16
    left = width - 22 - lead - _font(13).getlength(word)
    draw.rounded_rectangle((left, 6, width - 6, 28), radius=6, fill=colour, outline=CARD, width=2)
    draw.text((left + 8 + lead, 17), word, fill=CARD, font=_font(13), anchor="lm")
    x, y = left + 9, 17
    if entry.right:
        draw.line([(x, y), (x + 4, y + 4), (x + 11, y - 5)], fill=CARD, width=2)
    elif entry.right is False:
        draw.line([(x, y - 4), (x + 9, y + 5)], fill=CARD, width=2)
        draw.line([(x, y + 5), (x + 9, y - 4)], fill=CARD, width=2)


def _tile(cards: Sequence[Image.Image], columns: int, width: int) -> Image.Image:
    """Rows of cards, each row as high as its highest card."""
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [max(card.height for card in row) for row in rows] or [60]
    size = (_GAP + columns * (width + _GAP), _GAP + sum(height + _GAP for height in heights))
    sheet = Image.new("RGB", size, PAPER)
    y = _GAP
    for row, height in zip(rows, heights, strict=False):
        for column, card in enumerate(row):
            x = _GAP + column * (width + _GAP)
            sheet.paste(CARD, (x, y, x + width, y + height))
            sheet.paste(card, (x, y))
        y += height + _GAP
    if not rows:
        ImageDraw.Draw(sheet).text((_GAP, _GAP), "no samples", fill=SOFT, font=_font(_SIZE))
    return sheet


def _layout(spans: Sequence[tuple[str, Colour]], width: int, size: int, limit: int) -> tuple[list[_Placed], int]:
    """Coloured text wrapped into lines of `width` pixels, at most `limit` of them, and its height."""
    font, line = _font(size), math.ceil(size * 1.35)
    placed: list[_Placed] = []
    x, row = 0.0, 0
    for text, colour in spans:
        for word in _words(text, width, font):
            length = font.getlength(word)
            if word == "\n" or (x + length > width and not word.isspace()):
                x, row = 0.0, row + 1
            if row >= limit:
                return _with_dots(placed, width, (limit - 1) * line, size), limit * line
            if not word.isspace():
                placed.append(_Placed(x, row * line, word, colour, size))
            if word != "\n" and (x or not word.isspace()):
                x += length
    return placed, (row + 1) * line


def _with_dots(placed: list[_Placed], width: int, y: int, size: int) -> list[_Placed]:
    """Ends the line at height `y` with dots, in place of words that leave no room for them."""
    font = _font(size)
    edge = width - font.getlength("...")
    kept = [word for word in placed if word.y < y or word.x + font.getlength(word.text) <= edge]
    end = max((word.x + font.getlength(word.text) for word in kept if word.y == y), default=0.0)
    return [*kept, _Placed(end, y, "...", SOFT, size)]


def _words(text: str, width: int, font: ImageFont.FreeTypeFont) -> Iterator[str]:
    """Words, spaces and line ends; a word wider than a line comes in pieces."""
    for number, line in enumerate(text.splitlines() or [""]):
        if number:
            yield "\n"
        for index, word in enumerate(line.split(" ")):
            if index:
                yield " "
            while font.getlength(word) > width:
                cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
                yield word[:cut]
                word = word[cut:]
            if word:
                yield word
    if text.endswith("\n"):
        yield "\n"


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest copy that fits; small images are enlarged."""
    scale = min(width / image.width, height / image.height)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _dashes(
    start: tuple[float, float], end: tuple[float, float]
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The line from start to end as dashes of 7 pixels with gaps of 5."""
    length = math.dist(start, end)

    def at(distance: float) -> tuple[float, float]:
        share = min(distance / length, 1.0)
        return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share

    return [(at(distance), at(distance + 7)) for distance in range(0, int(length), 12)] if length else []


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that sheets look alike on every machine."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _save(image: Image.Image, path: Path) -> Path:
    with writing(path) as temporary:
        image.save(temporary, "PNG", optimize=True)
    return path
