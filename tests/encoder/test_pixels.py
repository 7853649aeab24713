"""What the fast path costs: torch's resize and JPEGs decoded smaller, against Pillow on the whole picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmexp.encoder import ImageTransform
from mmexp.prompt.image import load_sized
from tests.shared_data import shared

FITS = ("crop", "pad", "squash")


def photos(every: int = 5) -> list:
    return sorted(shared("images").glob("*.jpg"))[::every]


def levels(one: Image.Image, other: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size_px", [112, 336])
def test_torch_resizes_real_photos_as_pillow_does(fit, size_px):
    """Crop and pad: at most 2 of 255, and at most one value in a hundred differs at all. Squash: Pillow 13 resizes the
    columns of a portrait first, torch always the rows, and each rounds between the two; 0.3 of 255 on average."""
    exact, fast = (ImageTransform(size_px=size_px, fit=fit, exact=exact) for exact in (True, False))
    for file in photos():
        image, _ = load_sized(file)
        difference = levels(exact.square(image), fast.square(image))
        assert difference.max() <= (12 if fit == "squash" else 2)
        assert difference.mean() < (0.3 if fit == "squash" else 0.01)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size_px", [56, 84, 112])
def test_photos_decoded_smaller_stay_within_the_stated_tolerance(fit, size_px):
    """With twice the pixels of the view left: 1.3 of 255 on average in the worst photo, 15 in all but one of 1,000."""
    transform, smaller = ImageTransform(size_px=size_px, fit=fit), 0
    for file in photos():
        whole, size = load_sized(file)
        image, same = load_sized(file, reduction=transform.reduction)
        assert same == size
        if image.size == size:
            continue
        smaller += 1
        assert min(image.size) >= 2 * size_px or fit == "pad"
        difference = levels(transform.square(whole), transform.square(image, size))
        assert difference.mean() <= 1.3
        assert np.percentile(difference, 99.9) <= 15
    assert smaller


def test_published_sizes_of_ordinary_photos_are_decoded_whole():
    """336 px and photos of at most 1,343 px on the shorter side: the published pixels up to the resize."""
    for fit in FITS:
        transform = ImageTransform(size_px=336, fit=fit)
        assert transform.reduction((640, 480)) == 1
        assert transform.reduction((1920, 1080)) == (1 if fit != "pad" else 2)
        assert transform.reduction((4032, 3024)) == 4


@pytest.mark.parametrize("fit", FITS)
def test_exact_pixels_are_those_of_pillow_bit_for_bit(fit):
    noise = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    transform, image = ImageTransform(size_px=28, fit=fit), Image.fromarray(noise)
    if fit == "squash":
        expected = image.resize((28, 28), Image.Resampling.BICUBIC)
    elif fit == "crop":
        expected = image.resize((39, 28), Image.Resampling.BICUBIC).crop((5, 0, 33, 28))
    else:
        square = Image.new("RGB", (70, 70), (122, 116, 104))
        square.paste(image, (0, 10))
        expected = square.resize((28, 28), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(transform.square(image)), np.asarray(expected))
    values = (np.asarray(expected, np.float32) * np.float32(1 / 255) - np.float32(transform.mean)) / np.float32(
        transform.std
    )
    assert torch.equal(transform(image), torch.from_numpy(values.transpose(2, 0, 1).copy()))
    assert transform(image).is_contiguous()
