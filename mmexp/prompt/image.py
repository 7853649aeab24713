"""Pictures from disk, bytes or memory to RGB, with every way a file can be bad turned into one clear error."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.contracts import Size
from mmexp.errors import DataError
from mmexp.prompt.transparency import Colour, flatten

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; a small file can hold a picture that fills the memory."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is opened. Never everything Pillow knows: EPS would start Ghostscript."""
_ORIENTATION = 0x0112
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""EXIF orientation to the turn of Pillow that makes it upright."""
_HOLDS_ORIENTATION = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Entries of `info` in which Pillow looks for an orientation."""
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR)
"""Troubles of the machine, not of the file: they must never decide that a sample is left out."""


class BadMediaError(DataError):
    """A medium that nobody can read. Training leaves its sample out by a counted, capped rule."""

    file: str = ""
    """The path, empty for media that come as bytes."""

    def __reduce__(self) -> tuple:
        rebuild, fields = super().__reduce__()
        return rebuild, fields, {"file": self.file}


def load_image(source: Any, where: str = "", backdrop: Colour | None = None) -> Image.Image:
    """The picture as RGB, upright (EXIF orientation applied), 16-bit grey scaled to 8 bit instead of clipped.

    Of an animation it is the first frame.

    Args:
        source: A file path, encoded bytes, or a `PIL.Image.Image`.
        where: Dataset and sample, for messages.
        backdrop: What lies under transparent pixels; None shows their hidden colour, as in the reference recipes.

    Raises:
        BadMediaError: missing, no file, empty, damaged, too large or of an unknown format.
        DataError: the machine could not read it now (too many open files, an I/O error), or no kind of source.
    """
    return load_sized(source, where, backdrop=backdrop)[0]


def load_sized(
    source: Any, where: str = "", reduction: Callable[[Size], int] | None = None, backdrop: Colour | None = None
) -> tuple[Image.Image, Size]:
    """As `load_image`, and the size of the whole picture, which the decoded one has unless it was decoded smaller.

    Args:
        source: A file path, encoded bytes, or a `PIL.Image.Image`.
        where: Dataset and sample, for messages.
        reduction: From the picture's size, by which of 1, 2, 4 and 8 a JPEG may be made smaller while it is decoded;
            the result then has ceil(width / it) x ceil(height / it) pixels. None always decodes the whole.
        backdrop: As of `load_image`.

    Raises:
        As `load_image`.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        image = _to_rgb(source, _orientation(source), where or "image", backdrop)
        return image, image.size
    with _opened(source, where) as (image, place):
        orientation = _orientation(image)
        size = _upright(image.size, orientation)
        if reduction is not None and image.format == "JPEG":
            _draft(image, orientation, reduction(size))
        return _to_rgb(image, orientation, place, backdrop), size


def image_size(source: Any, where: str = "") -> Size:
    """Width and height of the upright picture, from the header alone.

    Raises:
        As `load_image`, but for damage behind the header.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return _upright(source.size, _orientation(source))
    with _opened(source, where) as (image, _):
        return _upright(image.size, _orientation(image))


@contextlib.contextmanager
def _opened(source: Any, where: str) -> Iterator[tuple[Image.Image, str]]:
    """The picture before it is decoded, and its place for messages; what goes wrong inside becomes one clear error."""
    from PIL import Image

    file = ""
    if isinstance(source, (str, os.PathLike)):
        file = os.fspath(source)
        where = f"{where}, file {file}" if where else file
    elif isinstance(source, (bytes, bytearray, memoryview)):
        where = f"{where}, {len(source)} bytes" if where else f"{len(source)} bytes"
    else:
        raise DataError(f"{type(source).__name__} as an image", expected="a path, bytes or a PIL image", where=where)
    try:
        data: Any = _checked_path(Path(file), where) if file else _checked_bytes(source, where)
        with Image.open(data, formats=FORMATS) as image:
            _check_pixels(image.size, where)
            yield image, where
    except BadMediaError as error:
        error.file = file
        raise
    except MemoryError:
        raise
    except Exception as error:  # decoders of foreign bytes raise nearly anything: SyntaxError, struct.error, ...
        if isinstance(error, OSError) and error.errno in _PASSING:
            raise DataError(
                f"the image cannot be read now ({error.strerror})",
                where=where,
                fix="this is a trouble of the machine, not of the file: resume when it is gone",
            ) from error
        bad = _damaged(error, where)
        bad.file = file
        raise bad from error


def _checked_path(path: Path, where: str) -> Path:
    try:
        status = path.stat()
    except OSError as error:
        if error.errno in _PASSING:
            raise
        raise BadMediaError(
            f"the image file cannot be opened ({error.strerror or error})",
            expected="an existing, readable file",
            where=where,
            fix="check data.image_root, or restore the file",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise BadMediaError(f"{kind} where an image file should be", expected="a file", where=where,
                            fix="check data.image_root and the row's image field")  # fmt: skip
    if status.st_size == 0:
        raise BadMediaError("the image file is empty (0 bytes)", where=where, fix="download or render the file again")
    return path


def _checked_bytes(source: Any, where: str) -> io.BytesIO:
    if not len(source):
        raise BadMediaError("the image is empty (0 bytes)", where=where, fix="write the row again with its picture")
    return io.BytesIO(source)


def _check_pixels(size: Size, where: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise BadMediaError(
            f"an image of {size[0]} x {size[1]} pixels",
            expected=f"at most {MAX_PIXELS // 1_000_000} million pixels",
            where=where,
            fix="store a smaller version of the picture",
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation that is still to be applied, 1 to 8, without decoding."""
    from PIL import Image

    if image.format == "TIFF":  # Pillow turns these itself, and gives the turned size from the start
        return 1
    try:
        # the method of the base class: a PNG's own one would decode the picture to look for a late chunk
        found = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing; the pixels may be sound
        return 1
    return found if found in range(1, 9) else 1


def _upright(size: Size, orientation: int) -> Size:
    return (size[1], size[0]) if orientation > 4 else size


def _draft(image: Any, orientation: int, factor: int) -> None:
    """Tells the decoder to leave out detail. A turned picture must divide evenly: the cut pixel would change sides."""
    if factor > 1 and (orientation == 1 or not any(side % factor for side in image.size)):
        image.draft(None, (image.size[0] // factor, image.size[1] // factor))


def _to_rgb(image: Image.Image, orientation: int, where: str, backdrop: Colour | None) -> Image.Image:
    from PIL import Image

    _check_pixels(image.size, where)
    if image.mode == "F":
        raise BadMediaError("pixels are floating-point numbers of unknown range", expected="8 or 16 bit", where=where,
                            fix="convert the picture to 8 bit")  # fmt: skip
    image.load()
    if orientation > 1:
        image = image.transpose(getattr(Image.Transpose, _TURNS[orientation]))
    if image.mode.startswith("I"):
        import numpy as np

        grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
        image = Image.fromarray(grey.astype(np.uint8))
    rgb = flatten(image, backdrop)
    # an orientation that stayed would be applied again when this picture is a source itself
    rgb.info = {key: value for key, value in rgb.info.items() if key not in _HOLDS_ORIENTATION}
    return rgb


def _damaged(error: Exception, where: str) -> BadMediaError:
    """What is wrong, in words, for an exception of a decoder."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return BadMediaError(
            "an image far larger than can be decoded safely",
            expected=f"at most {MAX_PIXELS // 1_000_000} million pixels",
            where=where,
            fix="store a smaller version of the picture",
        )
    if isinstance(error, UnidentifiedImageError):
        return BadMediaError("not a picture in a known format", expected=", ".join(FORMATS), where=where,
                             fix="check that the file is a picture and download it again")  # fmt: skip
    return BadMediaError(f"the image is damaged ({error})", expected="a complete picture", where=where,
                         fix="download or render the file again")  # fmt: skip
