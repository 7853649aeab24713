"""Small files in the layouts that readers read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mmexp.contracts import Medium, Region, Text
from mmexp.errors import DataError


def write(folder: Path, content, name: str = "data.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def everything(data) -> list:
    return [data[index] for index in range(len(data))]


def complaint(config) -> str:
    """The message with which a config refuses its data."""
    with pytest.raises(DataError) as error:
        everything(config.build())
    return str(error.value)


def flat(sample) -> list:
    """The turns as (role, piece, piece, ...): texts as they are, pictures as `file` or bytes, regions as tuples."""
    return [(turn.role, *map(_piece, turn.parts)) for turn in sample.turns]


def _piece(part):
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Region):
        return (part.phrase, part.medium, *part.boxes)
    assert isinstance(part, Medium)
    return Path(part.source) if isinstance(part.source, str) else part.source


def jpeg(width: int = 8, height: int = 4, orientation: int = 1) -> bytes:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), (width * 7 % 256, 9, 9)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def caption_tar(path: Path, count: int, start: int = 0) -> Path:
    pairs = [
        member
        for number in range(start, start + count)
        for member in ((f"{number:05d}.jpg", jpeg(8 + number)), (f"{number:05d}.txt", f"caption {number}".encode()))
    ]
    return write_tar(path, pairs)
