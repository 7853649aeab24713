"""Pictures from disk, bytes or memory to RGB, with every way a file can be bad turned into one clear error."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; a small file can hold a picture that fills the memory."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is opened. Never everything Pillow knows: EPS would start Ghostscript."""


def load_image(source: Any, where: str = "") -> Image.Image:
    """The picture as RGB, upright (EXIF orientation applied), 16-bit grey scaled to 8 bit instead of clipped.

    Transparent pixels show their hidden colour, as in the reference recipes.

    Args:
        source: A file path, encoded bytes, or a `PIL.Image.Image`.
        where: Dataset and sample, for messages.

    Raises:
        DataError: missing, empty, damaged, too large or of an unknown format.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return _to_rgb(source, where or "image")
    if isinstance(source, (str, os.PathLike)):
        where = f"{where}, file {source}" if where else str(source)
        data: Any = _checked_path(Path(source), where)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        where = f"{where}, {len(source)} bytes" if where else f"{len(source)} bytes"
        data = io.BytesIO(source)
    else:
        raise DataError(f"{type(source).__name__} as an image", expected="a path, bytes or a PIL image", where=where)
    try:
        with Image.open(data, formats=FORMATS) as image:
            return _to_rgb(image, where)
    except DataError:
        raise
    except Exception as error:  # decoders of foreign bytes raise nearly anything: SyntaxError, struct.error, ...
        raise _damaged(error, where) from error


def _checked_path(path: Path, where: str) -> Path:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"the image file cannot be opened ({error.strerror or error})",
            expected="an existing, readable file",
            where=where,
            fix="check data.image_root, or restore the file",
        ) from error
    if size == 0:
        raise DataError("the image file is empty (0 bytes)", where=where, fix="download or render the file again")
    return path


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    from PIL import Image, ImageOps

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"an image of {width} x {height} pixels",
            expected=f"at most {MAX_PIXELS // 1_000_000} million pixels",
            where=where,
            fix="store a smaller version of the picture",
        )
    if image.mode == "F":
        raise DataError("pixels are floating-point numbers of unknown range", expected="8 or 16 bit", where=where,
                        fix="convert the picture to 8 bit")  # fmt: skip
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        import numpy as np

        grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _damaged(error: Exception, where: str) -> DataError:
    """What is wrong, in words, for an exception of a decoder."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return DataError(
            "an image far larger than can be decoded safely",
            expected=f"at most {MAX_PIXELS // 1_000_000} million pixels",
            where=where,
            fix="store a smaller version of the picture",
        )
    if isinstance(error, UnidentifiedImageError):
        return DataError("not a picture in a known format", expected=", ".join(FORMATS), where=where,
                         fix="check that the file is a picture and download it again")  # fmt: skip
    return DataError(f"the image is damaged ({error})", expected="a complete picture", where=where,
                     fix="download or render the file again")  # fmt: skip
