"""A box still points at its object in every view the encoder sees, and where nothing is left of it, it is said."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmexp.contracts import Medium, Region, Sample, Text, Turn
from mmexp.encoder import ImageTransform
from mmexp.errors import DataError
from mmexp.llm import TinyLlmConfig
from mmexp.prompt import (
    AnyRes,
    ChatTemplate,
    DynamicTiles,
    OutsideViewError,
    Processor,
    RegionFormat,
    SegmentTokenizer,
    TiledTransform,
    to_picture,
    to_view,
)
from mmexp.prompt.boxes import map_regions
from mmexp.prompt.image import load_sized

S = 96
SINGLE = {fit: ImageTransform(size_px=S, fit=fit) for fit in ("crop", "pad", "squash")}
TILED = {
    name: TiledTransform(tiling=rule, view=SINGLE["squash"], padded=SINGLE["pad"], num_soft_tokens=4, soft_grid=(2, 2))
    for name, rule in (("tiles", DynamicTiles(max_tiles=6)), ("anyres", AnyRes()))
}
BACKGROUND, COLOUR = (30, 60, 200), (230, 40, 30)
AWAY = {
    1: lambda v: v,
    3: lambda v: v[::-1, ::-1],
    6: lambda v: np.rot90(v, 1),
    7: lambda v: np.rot90(v, 2).swapaxes(0, 1),
    8: lambda v: np.rot90(v, -1),
}
"""EXIF orientation to how the camera stored an upright picture."""


@st.composite
def scenes(draw):
    """Width, height, a rectangle in pixels that is large enough to be seen, an orientation and a file format."""
    width, height = draw(st.integers(40, 700)), draw(st.integers(40, 700))
    across, down = max(width, height) // 6, max(width, height) // 6
    left = draw(st.integers(0, max(width - across, 0)))
    top = draw(st.integers(0, max(height - down, 0)))
    right = draw(st.integers(min(left + across, width), width))
    bottom = draw(st.integers(min(top + down, height), height))
    return width, height, (left, top, right, bottom), draw(st.sampled_from(sorted(AWAY))), draw(
        st.sampled_from(["PNG", "JPEG"])
    )  # fmt: skip


def stored(width, height, pixels, orientation, kind) -> bytes:
    left, top, right, bottom = pixels
    upright = np.empty((height, width, 3), np.uint8)
    upright[:] = BACKGROUND
    upright[top:bottom, left:right] = COLOUR
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(AWAY[orientation](upright)))
    image.save(buffer, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


def seen(image: Image.Image):
    """Where the rectangle's colour is in a view, in pixels, to half a pixel; None when it is nowhere."""
    red, green, blue = np.moveaxis(np.asarray(image).astype(float), -1, 0)
    redness = red - (green + blue) / 2  # the rectangle 195, the background -100, padding and black about 0
    rows, columns = (redness.max(axis) > 60 for axis in (1, 0))
    if not rows.any():
        return None
    (top, bottom), (left, right) = ((line.argmax(), len(line) - line[::-1].argmax()) for line in (rows, columns))
    return left, top, right, bottom


def compare(view: Image.Image, box, window, size) -> None:
    """The coloured pixels of a view against the mapped box: at most a pixel and a half of the view, or what one pixel
    of a picture that was enlarged is there."""
    mapped, found = to_view(box, window), seen(view)
    slack = 1.5 + S / min((window[2] - window[0]) * size[0], (window[3] - window[1]) * size[1]) / 2
    if mapped is None:
        assert found is None
        return
    expected = tuple(side * S for side in mapped)
    if min(expected[2] - expected[0], expected[3] - expected[1]) > 2 * slack:
        assert found is not None
    if found is not None:
        assert max(abs(one - other) for one, other in zip(expected, found, strict=True)) <= slack, (expected, found)


def loaded(transform, scene):
    width, height, pixels, orientation, kind = scene
    image, size = load_sized(stored(width, height, pixels, orientation, kind), "", transform.reduction)
    assert size == (width, height)
    left, top, right, bottom = pixels
    return image, size, (left / width, top / height, right / width, bottom / height)


@pytest.mark.parametrize("fit", SINGLE)
@settings(max_examples=60, deadline=None)
@given(scene=scenes())
def test_rectangle_is_found_at_the_mapped_box(fit, scene):
    image, size, box = loaded(SINGLE[fit], scene)
    compare(SINGLE[fit].square(image, size), box, SINGLE[fit].window(size), size)


@pytest.mark.parametrize("rule", TILED)
@settings(max_examples=40, deadline=None)
@given(scene=scenes())
def test_rectangle_is_found_in_every_tile(rule, scene):
    transform = TILED[rule]
    image, size, box = loaded(transform, scene)
    values = transform(image, size)
    for number, window in enumerate(transform.windows(size)):
        compare(transform.view.restore(values[number]), box, window, size)


SHARE = st.floats(0, 1)


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), sides=st.tuples(SHARE, SHARE, SHARE, SHARE))
def test_there_and_back(width, height, sides):
    box = (*sorted(sides[:2]), *sorted(sides[2:]))
    box = (box[0], box[2], box[1], box[3])
    for fit in ("pad", "squash"):
        window = SINGLE[fit].window((width, height))
        mapped = to_view(box, window)
        assert mapped is not None
        assert to_picture(mapped, window) == pytest.approx(box, abs=1e-9)
    window = SINGLE["crop"].window((width, height))
    mapped = to_view(box, window)
    if mapped is not None:  # what the crop left of it
        kept = (max(box[0], window[0]), max(box[1], window[1]), min(box[2], window[2]), min(box[3], window[3]))
        assert to_picture(mapped, window) == pytest.approx(kept, abs=1e-9)


def test_padded_square_of_llava():
    """640 x 480: 80 rows of padding above and below a square of 640."""
    window = ImageTransform(size_px=336, fit="pad").window((640, 480))
    assert to_view((0.0, 0.0, 1.0, 1.0), window) == pytest.approx((0, 80 / 640, 1, 560 / 640))


def asked(fit: str, region: Region, size=(640, 480), **changes) -> str:
    transform = SINGLE[fit] if fit in SINGLE else TILED[fit]
    processor = Processor(
        template=ChatTemplate(name="t", region=RegionFormat(digits=3)),
        tokenizer=SegmentTokenizer(TinyLlmConfig().load_tokenizer()),
        max_length_tokens=500,
        slot_lengths={"image": 4},
        transforms={"image": transform},
        **changes,
    )
    media = tuple(Medium(source=Image.new("RGB", each)) for each in ((100, 100), size))
    turns = (
        Turn(role="user", parts=(*media, Text(text="where?"))),
        Turn(role="assistant", parts=(Text(text="there "), region)),
    )
    layout = processor.layout(Sample(id="s", dataset="d", turns=turns))
    return processor.tokenizer.decode([token for token in layout.encoded.ids if token != processor.tokenizer.pad_id])


HALF = Region(boxes=((0.5, 0.0, 1.0, 1.0),), phrase="the right half", medium=1)


@pytest.mark.parametrize(
    ("fit", "changes", "written"),
    [
        ("pad", {}, "[0.500, 0.125, 1.000, 0.875]"),
        ("pad", {"box_frame": "picture"}, "[0.500, 0.000, 1.000, 1.000]"),
        ("squash", {}, "[0.500, 0.000, 1.000, 1.000]"),
        ("tiles", {}, "[0.500, 0.000, 1.000, 1.000]"),
        ("crop", {}, "[0.500, 0.000, 1.000, 1.000]"),
    ],
)
def test_processor_writes_boxes_in_the_frame_of_the_view(fit, changes, written):
    assert written in asked(fit, HALF, **changes)


def test_box_in_what_the_crop_cuts_away_is_named():
    edge = Region(boxes=((0.0, 0.0, 0.1, 1.0),), phrase="the edge", medium=1)
    with pytest.raises(OutsideViewError, match=r"\[0.000, 0.000, 0.100, 1.000\] \(the edge\)") as error:
        asked("crop", edge)
    assert "d, sample 's'" in error.value.where
    assert "image_fit=pad" in error.value.fix
    assert "[0.000, 0.000, 0.100, 1.000]" in asked("crop", edge, box_frame="picture")


def test_region_of_a_medium_that_is_not_there():
    with pytest.raises(DataError, match="medium 7"):
        map_regions((Turn(role="user", parts=(Region(boxes=((0, 0, 1, 1),), medium=7),)),), lambda number: (0, 0, 1, 1))


def test_box_without_area():
    window = SINGLE["crop"].window((640, 480))
    assert to_view((0.5, 0.2, 0.5, 0.8), window) == pytest.approx((0.5, 0.2, 0.5, 0.8))
    assert to_view((0.01, 0.2, 0.01, 0.8), window) is None
