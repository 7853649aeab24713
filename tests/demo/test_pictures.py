"""Boxes where the answer means them, pictures as one sees them."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.demo.pictures import boxes_of, marked, shown
from mmexp.engine import Generator
from mmexp.prompt import BoxText
from mmexp.serve.errors import ApiError


def encoded(width: int, height: int, **options: object) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), (10, 20, 200)).save(data, **{"format": "PNG", **options})
    return data.getvalue()


def talk(*pictures: bytes) -> Sample:
    turns = tuple(Turn(role="user", parts=(Medium(source=one), Text(text="\nWhere?"))) for one in pictures)
    return Sample(id="talk", turns=turns)


def test_boxes_are_read_in_the_frame_that_the_model_learned(generator: Generator) -> None:
    wide = encoded(400, 200)
    boxes = generator.plan.processor.boxes
    frame = boxes.frame(talk(wide), 0)
    assert frame == (0.0, -0.5, 1.0, 1.5), "the padded square, else this test sees nothing"
    text = "[0.20, 0.30, 0.60, 0.70] and [0.00, 0.00, 0.10, 0.20], the padding, and nonsense [7, 7]"
    found = boxes_of(text, talk(wide), boxes)
    assert found is not None
    assert found[0] == wide
    assert found[1] == (pytest.approx((0.2, 0.1, 0.6, 0.9)),)


def test_boxes_lie_in_the_last_picture(generator: Generator) -> None:
    one, two = encoded(100, 100), encoded(100, 200)
    found = boxes_of("[0.5, 0.5, 0.75, 0.75]", talk(one, two), generator.plan.processor.boxes)
    assert found == (two, (pytest.approx((0.5, 0.5, 1.0, 0.75)),))
    assert boxes_of("no box", talk(one), BoxText()) is None
    assert boxes_of("[0.1, 0.1, 0.2, 0.2]", Sample(id="words", turns=()), BoxText()) is None


def test_a_box_is_drawn_on_its_edges_and_nowhere_else() -> None:
    before = shown(encoded(200, 100))
    after = marked(before, [(0.25, 0.25, 0.75, 0.75)])
    assert after.size == before.size == (480, 240)
    changed = {(x, y) for x in range(480) for y in range(240) if after.getpixel((x, y)) != before.getpixel((x, y))}
    assert (120, 120) in changed
    assert (359, 60) in changed
    assert not {(240, 120), (100, 120), (240, 40), (400, 120)} & changed
    assert all(110 <= x <= 370 and 50 <= y <= 190 for x, y in changed)


def test_pictures_are_upright_and_of_one_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert shown(encoded(60, 30, format="JPEG", exif=exif)).size == (240, 480)
    assert shown(encoded(3000, 10)).size == (480, 2)


@pytest.mark.parametrize("data", [b"no picture", encoded(50, 50)[:60], b""])
def test_what_cannot_be_read_is_said(data: bytes) -> None:
    with pytest.raises(ApiError, match="a picture cannot be read: "):
        shown(data)
