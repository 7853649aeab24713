"""Every way a picture can be bad gives one error that names the sample."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmexp.errors import DataError
from mmexp.prompt import load_image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_path_bytes_and_object_give_the_same(tmp_path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    (tmp_path / "a.png").write_bytes(encoded(image))
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), encoded(image), image):
        assert np.array_equal(np.asarray(load_image(source)), np.asarray(image))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    found = np.asarray(load_image(encoded(Image.fromarray(grey))))
    assert found[..., 0].tolist() == [[0, 100], [200, 255]]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (4, 2))
    assert load_image(encoded(image, "JPEG", exif=exif)).size == (2, 4)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert load_image(encoded(Image.new(mode, (3, 2)), kind)).mode == "RGB"


def broken(folder):
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)))
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"hello")
    (folder / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
    Image.new("1", (9000, 8000)).save(folder / "huge.png")
    Image.new("1", (20000, 10000)).save(folder / "bomb.png")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "cannot be opened"),
        ("zero.png", "0 bytes"),
        ("cut.png", "damaged"),
        ("text.png", "not a picture"),
        ("page.eps", "not a picture"),
        ("huge.png", "9000 x 8000|far larger"),
        ("bomb.png", "far larger"),
    ],
)
def test_bad_file_is_named_with_its_sample(tmp_path, name, message):
    broken(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        load_image(tmp_path / name, "demo, sample '7'")
    assert "demo, sample '7'" in error.value.where
    assert name in error.value.where
    assert error.value.fix
