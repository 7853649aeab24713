"""Every way a picture can be bad gives one error that names the sample."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmexp.errors import DataError
from mmexp.prompt import BadMediaError, image_size, load_image
from mmexp.prompt.image import load_sized
from tests.broken_pictures import BROKEN, encoded, write_broken


def test_path_bytes_and_object_give_the_same(tmp_path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    (tmp_path / "a.png").write_bytes(encoded(image))
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), encoded(image), image):
        assert np.array_equal(np.asarray(load_image(source)), np.asarray(image))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    found = np.asarray(load_image(encoded(Image.fromarray(grey))))
    assert found[..., 0].tolist() == [[0, 100], [200, 255]]


RAMP = np.stack(np.meshgrid(np.arange(0, 240, 5), np.arange(0, 240, 10), indexing="xy"), -1).astype(np.uint8)
RAMP = np.concatenate([RAMP, 255 - RAMP[..., :1]], -1)
"""uint8[24, 48, 3], no two pixels alike, smooth enough for lossy formats."""


def pixels(source) -> np.ndarray:
    return np.asarray(load_image(source)).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_exif_orientation_comes_out_upright_and_is_known_from_the_header(kind, orientation):
    """The file holds the picture turned away from upright, as a camera writes it."""
    away = {
        1: lambda v: v,
        2: lambda v: v[:, ::-1],
        3: lambda v: v[::-1, ::-1],
        4: lambda v: v[::-1],
        5: lambda v: v.swapaxes(0, 1),
        6: lambda v: np.rot90(v, 1),
        7: lambda v: np.rot90(v, 2).swapaxes(0, 1),
        8: lambda v: np.rot90(v, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(Image.fromarray(np.ascontiguousarray(away(RAMP))), kind, exif=exif, **options)
    assert image_size(data) == (48, 24)
    assert np.abs(pixels(data) - RAMP).max() <= (3 if kind == "JPEG" else 0)


def test_an_upright_picture_given_as_an_object_is_not_turned_again():
    exif = Image.Exif()
    exif[0x0112] = 6
    once = load_image(encoded(Image.fromarray(RAMP), "JPEG", exif=exif))
    assert once.size == image_size(once) == load_image(once).size == (24, 48)


def test_other_notes_of_an_object_stay():
    image = Image.fromarray(RAMP)
    image.info["cells"] = [1, 2]
    assert load_image(image).info == {"cells": [1, 2]}


def test_broken_exif_does_not_cost_the_picture():
    data = encoded(Image.fromarray(RAMP), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    assert image_size(data) == load_image(data).size == (48, 24)


GREY = RAMP[..., 0]
LUMA = np.asarray(Image.fromarray(RAMP).convert("L")).astype(int)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), np.repeat(GREY[..., None], 3, 2)),
        (Image.fromarray(GREY > 100), np.repeat((GREY > 100)[..., None] * 255, 3, 2)),
        (Image.fromarray(np.dstack([RAMP, GREY])), RAMP),  # transparent pixels show their hidden colour
        (Image.fromarray(np.dstack([GREY, GREY])), np.repeat(GREY[..., None], 3, 2)),
        (Image.fromarray(GREY.astype(np.uint16) * 257), np.repeat(GREY[..., None], 3, 2)),
    ],
    ids=["grey", "bits", "RGBA", "grey with alpha", "16-bit grey"],
)
def test_modes_of_png_are_exact(image, expected):
    assert np.array_equal(pixels(encoded(image)), expected)


def test_palette_with_transparency():
    image = Image.fromarray(RAMP).quantize(64)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(pixels(encoded(image, transparency=3)), expected)
    assert np.array_equal(pixels(encoded(image, transparency=bytes(range(64)))), expected)
    assert np.array_equal(pixels(encoded(image, "GIF", transparency=3)), expected)


ALPHA = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (24, 1))


@pytest.mark.parametrize("colour", [(255, 255, 255), (10, 200, 30)])
def test_transparent_pixels_over_a_backdrop(colour):
    share = ALPHA[..., None] / 255
    expected = RAMP * share + np.asarray(colour) * (1 - share)
    for image in (Image.fromarray(np.dstack([RAMP, ALPHA])), Image.fromarray(np.dstack([RAMP, ALPHA])).convert("RGBa")):
        assert np.abs(np.asarray(load_image(image, backdrop=colour)).astype(int) - expected).max() <= 2
    grey = Image.fromarray(np.dstack([GREY, ALPHA]))
    found = np.asarray(load_image(encoded(grey), backdrop=colour)).astype(int)
    assert np.abs(found - (GREY[..., None] * share + np.asarray(colour) * (1 - share))).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry_over_a_backdrop(kind):
    image = Image.fromarray(RAMP).quantize(64)
    hidden = np.asarray(image) == 3
    found = np.asarray(load_image(encoded(image, kind, transparency=3), backdrop=(1, 2, 3)))
    assert hidden.any()
    assert (found[hidden] == (1, 2, 3)).all()
    assert np.array_equal(found[~hidden], np.asarray(image.convert("RGB"))[~hidden])


def test_transparent_colour_of_opaque_modes_over_a_backdrop():
    colour = tuple(int(value) for value in RAMP[5, 7])
    found = np.asarray(load_image(encoded(Image.fromarray(RAMP), transparency=colour), backdrop=(9, 9, 9)))
    assert found[5, 7].tolist() == [9, 9, 9]
    assert np.array_equal(np.delete(found[5], 7, 0), np.delete(RAMP[5], 7, 0))
    found = np.asarray(load_image(encoded(Image.fromarray(GREY), transparency=int(GREY[5, 7])), backdrop=(9, 8, 7)))
    assert found[5, 7].tolist() == [9, 8, 7]


def test_a_backdrop_changes_no_opaque_picture():
    for image in (Image.fromarray(RAMP), Image.fromarray(GREY), Image.fromarray(RAMP).quantize(64)):
        assert np.array_equal(np.asarray(load_image(image, backdrop=(1, 2, 3))), np.asarray(load_image(image)))


def test_sixteen_bit_colour_keeps_its_high_byte():
    """Written by hand: Pillow reads such files but does not write them."""
    deep = (RAMP.astype(np.uint16) * 256 + 77).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 48, 24, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(pixels(data), RAMP)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk(kind):
    image = Image.fromarray(RAMP).convert("CMYK")
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    assert np.abs(pixels(encoded(image, kind, **options)) - RAMP).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (48, 24), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(pixels(data), np.broadcast_to([255, 0, 0], (24, 48, 3)))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "BMP", "PPM"])
def test_lossless_and_lossy_formats(kind):
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    assert np.abs(pixels(encoded(Image.fromarray(RAMP), kind, **options)) - RAMP).max() <= (3 if kind == "JPEG" else 0)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return write_broken(tmp_path_factory.mktemp("broken"))


@pytest.mark.parametrize(("name", "message"), BROKEN, ids=[name for name, _ in BROKEN])
def test_bad_file_is_named_with_its_sample(broken, name, message):
    with pytest.raises(BadMediaError, match=message) as error:
        load_image(broken / name, "demo, sample '7'")
    assert "demo, sample '7'" in error.value.where
    assert name in error.value.where
    assert error.value.fix
    assert error.value.file == str(broken / name)
    assert pickle.loads(pickle.dumps(error.value)).file == error.value.file


@pytest.mark.parametrize(("number", "name"), [(errno.EMFILE, "Too many open files"), (errno.EIO, "error")])
def test_trouble_of_the_machine_is_not_called_bad_media(tmp_path, monkeypatch, number, name):
    """A sample that is left out because the machine was short of handles would come back at the next replay."""
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Image, "open", refuse)
    for read in (load_image, image_size):
        with pytest.raises(DataError, match=name) as error:
            read(tmp_path / "a.png")
        assert not isinstance(error.value, BadMediaError)


def test_jpeg_is_decoded_smaller_as_asked_and_keeps_its_whole_size():
    data = encoded(Image.fromarray(np.tile(RAMP, (5, 5, 1))), "JPEG")
    image, size = load_sized(data, reduction=lambda size: 4)
    assert (image.size, size) == ((60, 30), (240, 120))
    assert load_sized(encoded(Image.fromarray(RAMP)), reduction=lambda size: 4)[0].size == (48, 24)  # no JPEG
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(np.tile(RAMP, (5, 5, 1))[:, :239]), "JPEG", exif=exif)
    image, size = load_sized(turned, reduction=lambda size: 4)
    assert image.size == size == (120, 239)  # 239 does not divide by 4, and the cut pixel would change sides
