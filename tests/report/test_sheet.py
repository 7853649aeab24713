"""Contact sheets: what is drawn where, and that no text leaves its card."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mmexp.report import Entry, Piece, PreviewEntry, contact_sheet, preview_sheet
from mmexp.report.sheet import RIGHT, SUPERVISED, WRONG, _font, _layout, draw_boxes

GREY = Image.new("RGB", (101, 101), (128, 128, 128))


def _colours(image: Image.Image) -> set[tuple[int, int, int]]:
    return {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}


def test_boxes_are_where_they_belong() -> None:
    drawn = draw_boxes(GREY, (0.2, 0.2, 0.8, 0.8), None)
    assert drawn.getpixel((20, 50)) == RIGHT
    assert drawn.getpixel((80, 50)) == RIGHT
    assert drawn.getpixel((50, 50)) == (128, 128, 128)
    assert drawn.getpixel((5, 5)) == (128, 128, 128)
    assert GREY.getpixel((20, 50)) == (128, 128, 128)
    both = draw_boxes(GREY, (0.2, 0.2, 0.8, 0.8), (0.4, 0.4, 0.6, 0.6))
    column = {both.getpixel((40, y)) for y in range(42, 58)}
    assert WRONG in column
    assert (255, 255, 255) in column


@pytest.mark.parametrize(("right", "present", "absent"), [(True, RIGHT, WRONG), (False, WRONG, RIGHT)])
def test_mark(tmp_path: Path, right: bool, present: tuple[int, int, int], absent: tuple[int, int, int]) -> None:
    entry = Entry(image=GREY, prompt="?", prediction="x", target="y", right=right)
    with Image.open(contact_sheet([entry], tmp_path / "sheet.png")) as sheet:
        colours = _colours(sheet)
    assert present in colours
    assert absent not in colours


def test_sheet_grows_by_rows(tmp_path: Path) -> None:
    entry = Entry(image=GREY, prompt="What is this?", prediction="a box", target="a box", score=0.5)
    sizes = []
    for count in (1, 6, 7):
        with Image.open(contact_sheet([entry] * count, tmp_path / f"{count}.png")) as sheet:
            sizes.append(sheet.size)
    assert sizes[0][0] < sizes[1][0] == sizes[2][0]
    assert sizes[0][1] == sizes[1][1] < sizes[2][1]
    assert contact_sheet([], tmp_path / "none.png").is_file()


@pytest.mark.parametrize("text", ["one two three " * 30, "x" * 400, "a\n\nb\n", "", "caf\u00e9 \u4e2d\u6587"])
def test_text_stays_inside(text: str) -> None:
    placed, height = _layout([(text, (0, 0, 0)), (" tail", (9, 9, 9))], 120, 15, 6)
    assert all(word.x >= 0 and word.x + _font(15).getlength(word.text) <= 120 for word in placed)
    assert all(0 <= word.y < height for word in placed)
    assert len({word.y for word in placed}) <= 6
    if len(text) > 100:
        assert placed[-1].text == "..."
    else:
        assert placed[-1].text == "tail"


def test_preview_colours_what_is_supervised(tmp_path: Path) -> None:
    pieces = [Piece(text="USER: "), Piece(slot="image", length=576), Piece(text=" ASSISTANT: ")]
    plain = PreviewEntry(id="a", images=[GREY, GREY, GREY], pieces=pieces, counts="600 tokens")
    taught = PreviewEntry(id="b", images=[], pieces=[*pieces, Piece(text="IIII", supervised=True)], counts="604 tokens")
    with Image.open(preview_sheet([plain], tmp_path / "a.png")) as sheet:
        assert SUPERVISED not in _colours(sheet)
    with Image.open(preview_sheet([plain, taught], tmp_path / "b.png")) as sheet:
        assert SUPERVISED in _colours(sheet)
