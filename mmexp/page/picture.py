"""Pictures inside a page: small, embedded, and none that could not be read."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

_MAX_PIXELS = 64_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def load_thumbnail(path: Path | None, size_px: int = 320) -> Image.Image | None:
    """At most `size_px` wide and high. A file that cannot be read shows as missing: the report goes on."""
    if path is None:
        return None
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                return None
            image.thumbnail((size_px, size_px))
            return image.convert("RGB")
    except Exception:  # decoders of foreign bytes raise nearly anything: SyntaxError, struct.error, ...
        return None


def data_uri(image: Image.Image) -> str:
    """The image inside the page: PNG when small and drawn, JPEG when large."""
    data = BytesIO()
    if max(image.size) <= 160:
        image.save(data, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(data, "JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
