"""Views of one picture: the published numbers, any size, and transformers' own processors where the rules agree."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmexp.encoder import ImageTransform
from mmexp.errors import ConfigError
from mmexp.prompt import AnyRes, DynamicTiles, TiledTransform
from mmexp.prompt.tiles import _grids

HD = AnyRes(grids=tuple((a, b) for a in range(1, 7) for b in range(1, 7) if a * b <= 6))
SIDES = st.one_of(st.integers(1, 60), st.integers(60, 4000))


def tiled(rule, size_px=336, num_soft=576, side=24, **changes) -> TiledTransform:
    return TiledTransform(
        tiling=rule,
        view=ImageTransform(size_px=size_px, fit="squash", **changes),
        padded=ImageTransform(size_px=size_px, fit="pad", **changes),
        num_soft_tokens=num_soft,
        soft_grid=(side, side),
    )


NEXT, NEXT_HD = tiled(AnyRes()), tiled(HD, 224, 256, 16)
INTERNVL = {most: tiled(DynamicTiles(max_tiles=most), 448, 256, 16) for most in (6, 12, 40)}


@pytest.mark.parametrize(
    ("size", "slots"),
    [
        ((672, 672), 2928),
        ((640, 480), 2340),
        ((480, 640), 2352),
        ((1000, 300), 2182),
        ((1920, 1080), 1948),
        ((336, 336), 1176),
        ((300, 300), 1176),
        ((337, 337), 2928),
    ],
)
def test_published_counts_of_llava_next(size, slots):
    assert NEXT.num_slots(size) == len(NEXT.gather(size)) == slots


def test_published_counts_of_llava_15_hd():
    assert len(HD.grids) == 14
    assert NEXT_HD.num_slots((672, 448)) == 256 + 32 * 49 == 1824
    assert NEXT_HD.num_slots((448, 448)) == 256 + 32 * 33 == 1312


def test_a_small_square_takes_the_first_of_equal_grids():
    """Pinpoints are width first: (336, 672) is one column of two. transformers reads the same list height first."""
    assert AnyRes().cut((336, 336), 336).grid == (1, 2)
    swapped = AnyRes(grids=tuple((rows, columns) for columns, rows in AnyRes().grids))
    assert swapped.cut((336, 336), 336).grid == (2, 1)


@pytest.mark.parametrize(
    ("size", "grid", "slots"),
    [
        ((448, 448), (1, 1), 256),
        ((640, 640), (2, 2), 1280),
        ((800, 600), (4, 3), 3328),
        ((1920, 1080), (4, 2), 2304),
    ],
)
def test_published_counts_of_internvl(size, grid, slots):
    assert INTERNVL[12].tiling.cut(size, 448).grid == grid
    assert INTERNVL[12].num_slots(size) == slots
    assert INTERNVL[12].gather(size) is None


def test_published_numbers_of_grids():
    assert [len(_grids(1, most)) for most in (6, 12, 40)] == [14, 35, 158]
    assert INTERNVL[40].num_soft_tokens * 41 == 10_496
    assert max(INTERNVL[40].num_slots((width, 1000)) for width in range(100, 9000, 50)) <= 10_496


@settings(max_examples=300, deadline=None)
@given(width=SIDES, height=SIDES, most=st.sampled_from([6, 12, 40]))
def test_internvl_grid_is_that_of_transformers(width, height, most):
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    expected = get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
    assert DynamicTiles(max_tiles=most).cut((width, height), 448).grid == expected


def transformers_count(width, height, grids) -> int:
    """The processor's own formula, asked without a tokenizer."""
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor as Processor

    pinpoints = [[rows * 336, columns * 336] for columns, rows in grids]
    stand_in = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints),
        patch_size=14,
        num_additional_image_tokens=0,
        _get_unpadded_features=lambda *args: Processor._get_unpadded_features(None, *args),
    )
    return Processor._get_number_of_features(stand_in, height, width, 336, 336)


@settings(max_examples=300, deadline=None)
@given(width=SIDES, height=SIDES)
def test_anyres_count_is_that_of_transformers(width, height):
    """Given the same grids, but for sizes where a product of floats lies just below a whole number: transformers
    rounds to 7 digits first, LLaVA's own code (which we follow) does not."""
    columns, rows = AnyRes().cut((width, height), 336).grid
    products = (height * (columns * 24 / width), width * (rows * 24 / height))
    if all(int(product) == int(round(product, 7)) for product in products):
        assert NEXT.num_slots((width, height)) == transformers_count(width, height, AnyRes().grids)


@settings(max_examples=200, deadline=None)
@given(
    width=SIDES,
    height=SIDES,
    num_media=st.sampled_from([1, 1, 2, 5]),
    rule=st.sampled_from(
        [AnyRes(), HD, AnyRes(unpad=False), AnyRes(newline=False), DynamicTiles(), DynamicTiles(thumbnail=False)]
    ),
)
def test_count_follows_from_the_size_and_is_what_the_layout_makes(width, height, num_media, rule):
    transform, size = tiled(rule, 28, 4, 2), (width, height)
    views = transform.num_views(size, num_media)
    gather = transform.gather(size, num_media)
    slots = transform.num_slots(size, num_media)
    assert len(transform.windows(size, num_media)) == views
    if gather is None:
        assert slots == 4 * views
        return
    assert len(gather) == slots
    view, place = gather.unbind(1)
    assert 0 <= int(view.min()) <= int(view.max()) < views
    assert -1 <= int(place.min()) <= int(place.max()) < 4
    assert (place >= 0).all() or rule.newline
    real = gather[place >= 0]
    assert len({tuple(pair) for pair in real.tolist()}) == len(real)
    assert real[:4].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    if num_media == 1 and not rule.unpad:
        assert len(real) == 4 * views


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 200), height=st.integers(1, 200), rule=st.sampled_from([AnyRes(), DynamicTiles()]))
def test_views_are_as_many_as_counted(width, height, rule):
    transform, image = tiled(rule, 28, 4, 2), Image.new("RGB", (width, height))
    for num_media in (1, 3):
        values = transform(image, num_media=num_media)
        assert values.shape == (transform.num_views((width, height), num_media), 3, 28, 28)
        assert values.dtype == torch.float32


def photo(width, height) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(640, 480), (301, 700), (1000, 300), (90, 80)])
def test_anyres_pixels_are_those_of_transformers(size):
    from transformers import LlavaNextImageProcessorPil

    grids = AnyRes().grids
    theirs = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=[[rows * 336, columns * 336] for columns, rows in grids],
    )
    image = photo(*size)
    expected = torch.as_tensor(np.asarray(theirs(image, return_tensors="pt").pixel_values[0]))
    assert torch.allclose(NEXT(image), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(640, 640), (800, 600), (300, 200), (448, 448)])
def test_internvl_pixels_are_those_of_transformers(size):
    from transformers import GotOcr2ImageProcessorPil

    theirs = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True)
    image = photo(*size)
    expected = torch.as_tensor(np.asarray(theirs(image, return_tensors="pt").pixel_values))
    assert torch.allclose(INTERNVL[12](image), expected, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(width=SIDES, height=SIDES)
def test_arranged_soft_tokens_are_those_of_transformers(width, height):
    """Against `pack_image_features`, with numbers that say where each soft token came from."""
    from transformers.models.llava_next import modeling_llava_next as theirs

    from mmexp.model.splice import arrange

    transform, size = tiled(AnyRes(), 28, 4, 2), (width, height)
    columns, rows = transform.tiling.cut(size, 28).grid
    across, down = columns * 2, rows * 2
    products = (height * (across / width), width * (down / height))
    if any(int(product) != int(round(product, 7)) for product in products):
        return
    soft = torch.arange(1.0 + 4 * (1 + columns * rows))[1:].reshape(-1, 4, 1)
    newline = torch.tensor([-1.0])
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=28, patch_size=14),
        image_grid_pinpoints=[[r * 28, c * 28] for c, r in transform.tiling.grids],
    )
    packed, lengths = theirs.LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), [soft], torch.tensor([[height, width]]), "default", newline
    )
    assert lengths.tolist() == [transform.num_slots(size)]
    assert torch.equal(arrange(soft, transform.gather(size), newline), packed[0])


ONEVISION = AnyRes(grids=tuple((a, b) for a in range(1, 7) for b in range(1, 7)), max_views=9)


@pytest.mark.parametrize(
    ("size", "slots"),
    [((384, 384), 1485), ((768, 768), 729 + 54 * 55), ((2304, 2304), 729 + 81 * 82), ((1920, 1080), 729 + 60 * 109)],
)
def test_counts_of_llava_onevision(size, slots):
    """36 grids of 384, 27 x 27 soft tokens a view: never many more than those of nine views and the whole."""
    assert tiled(ONEVISION, 384, 729, 27).num_slots(size) == slots


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES, most=st.sampled_from([1, 2, 9]))
def test_shrunk_soft_tokens_are_those_of_transformers(width, height, most):
    from transformers.models.llava_onevision import modeling_llava_onevision as theirs

    from mmexp.model.splice import arrange

    rule, size = replace(ONEVISION, max_views=most), (width, height)
    transform = tiled(rule, 56, 16, 4)
    columns, rows = rule.cut(size, 56).grid
    products = (height * (columns * 4 / width), width * (rows * 4 / height))
    kept = tuple(map(len, rule.rows(size, (columns, rows), (4, 4))))
    is_thin = min(side // max(math.sqrt(kept[0] * kept[1] / (most * 16)), 1) for side in kept) < 1
    if is_thin or any(int(product) != int(round(product, 7)) for product in products):
        return
    soft = torch.randn(1 + columns * rows, 16, 5, generator=torch.Generator().manual_seed(width))
    newline = torch.full((5,), -7.0)
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=56, patch_size=14),
        image_grid_pinpoints=[[r * 56, c * 56] for c, r in rule.grids],
    )
    packed, lengths = theirs.LlavaOnevisionModel.pack_image_features(
        SimpleNamespace(config=config), [soft], torch.tensor([[height, width]]), newline, f"anyres_max_{most}"
    )
    assert lengths.tolist() == [transform.num_slots(size)]
    arranged = arrange(soft, transform.gather(size), newline, transform.blend(size))
    torch.testing.assert_close(arranged, packed[0], atol=1e-5, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(width=SIDES, height=SIDES, num_media=st.sampled_from([1, 3]), newline=st.booleans())
def test_shares_of_a_slot_make_a_whole(width, height, num_media, newline):
    transform = tiled(replace(ONEVISION, max_views=2, newline=newline), 28, 4, 2)
    size = (width, height)
    gather, blend = transform.gather(size, num_media), transform.blend(size, num_media)
    slots = transform.num_slots(size, num_media)
    assert gather.shape == (slots, 4, 2)
    assert blend.shape == (slots, 4)
    torch.testing.assert_close(blend.sum(1), torch.ones(slots))
    assert (gather[:, 0, 1] >= 0).all() or newline
    assert tiled(AnyRes(), 28, 4, 2).blend(size) is None


def test_pictures_of_one_conversation_share_the_tiles():
    """InternVL: the budget is max(1, 12 // pictures). LLaVA-NeXT: one padded view each, with one row end."""
    assert INTERNVL[12].num_views((800, 600), num_media=2) <= 6 + 1
    assert INTERNVL[12].num_slots((800, 600), num_media=40) == 256
    assert NEXT.num_slots((800, 600), num_media=2) == 577
    image = photo(80, 60)
    assert torch.equal(NEXT(image, num_media=2)[0], NEXT.padded(image))


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: DynamicTiles(min_tiles=4, max_tiles=3), "processor.tiles"),
        (lambda: DynamicTiles(min_tiles=0), "processor.tiles"),
        (lambda: AnyRes(grids=()), "processor.anyres.grids"),
        (lambda: AnyRes(grids=((0, 2),)), "processor.anyres.grids"),
        (lambda: AnyRes(max_views=0), "processor.anyres.max_views"),
    ],
)
def test_impossible_settings_are_refused(make, where):
    with pytest.raises(ConfigError) as error:
        make()
    assert error.value.where == where


def test_views_can_be_looked_at():
    image = photo(90, 60)
    strip = NEXT.restore(NEXT(image))
    views = NEXT.num_views((90, 60))
    assert strip.size == (views * 336, 336)
    whole = np.asarray(image.resize((336, 336), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(np.asarray(strip)[:, :336].astype(int) - whole).max() <= 1
    assert math.prod(strip.size) == views * 336 * 336
