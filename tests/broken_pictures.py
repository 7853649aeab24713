"""One picture file of every kind of damage."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
BROKEN = [
    ("missing.png", "cannot be opened"),
    ("zero.png", "0 bytes"),
    ("cut.png", "damaged"),
    *((f"cut.{kind}", "damaged") for kind in ("jpg", "webp", "gif", "bmp", "tif")),
    *((f"head.{kind}", "not a picture|damaged") for kind in ("jpg", "webp", "gif", "bmp", "tif")),
    ("text.png", "not a picture"),
    ("page.png", "not a picture"),
    ("page.eps", "not a picture"),
    ("flipped.png", "damaged"),
    ("huge.png", "9000 x 8000|far larger"),
    ("bomb.png", "far larger"),
    ("header.png", "far larger"),
    ("folder.png", "a folder"),
    ("pipe.png", "a pipe"),
    ("float.tif", "floating-point"),
    ("dangling.png", "cannot be opened"),
]


def write_broken(folder: Path) -> Path:
    """Writes one file of every kind of `BROKEN` but the missing ones, and returns the folder."""
    whole = encoded(NOISE)
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"hello")
    (folder / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
    Image.new("1", (9000, 8000)).save(folder / "huge.png")
    Image.new("1", (20000, 10000)).save(folder / "bomb.png")
    for kind in ("jpg", "webp", "gif", "bmp", "tif"):
        whole = encoded(NOISE, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()))
        (folder / f"cut.{kind}").write_bytes(whole[: len(whole) * 2 // 3])
        (folder / f"head.{kind}").write_bytes(whole[:5])
    whole = bytearray(encoded(NOISE))
    whole[16:24] = struct.pack(">II", 100_000, 90_000)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    (folder / "header.png").write_bytes(whole)
    (folder / "flipped.png").write_bytes(encoded(NOISE).replace(b"IDAT", b"IDAT\0\0\0", 1))
    (folder / "page.png").write_text("<html>404 Not Found</html>")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tif")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    return folder
