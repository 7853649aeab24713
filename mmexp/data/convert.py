"""Any dataset as LLaVA JSON with a folder of pictures, or as tar shards with a manifest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmexp.contracts import Dataset, Medium, Region, Sample, Text
from mmexp.data.shards import write_manifest
from mmexp.data.tarindex import open_shard
from mmexp.errors import DataError
from mmexp.prompt import describe, load_image

PLACEHOLDER = "<image>"
_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "PPM": "ppm"}
WriteRegion = Callable[[Region], str]
"""How boxes become text, for example `template.region.text`."""


def to_llava(dataset: Dataset, out: Path, write_region: WriteRegion) -> Path:
    """Writes `data.json` and `images/` below the new folder `out`; pictures keep their bytes.

    Raises:
        DataError: `out` exists, a picture cannot be read, or text of a user holds the placeholder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _make_new(out)
    (out / "images").mkdir()
    with (out / "data.json").open("w", encoding="utf-8") as file:
        separator = "[\n"
        for sample in _samples(dataset):
            names = []
            for medium in _media(sample):
                data, extension = _bytes(medium, sample)
                digest = hashlib.sha256(data).hexdigest()[:24]
                names.append(f"images/{digest[:2]}/{digest}.{extension}")
                target = out / names[-1]
                if not target.exists():
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(data)
            file.write(separator + json.dumps(_row(sample, names, write_region), ensure_ascii=False))
            separator = ",\n"
        file.write("\n]\n")
    return out / "data.json"


def to_webdataset(dataset: Dataset, out: Path, write_region: WriteRegion, shard_rows: int = 1000) -> Path:
    """Writes `00000.tar`, ... and `manifest.json` (rows and SHA-256 of each) below the new folder `out`.

    A sample is `<number>.json` (a LLaVA row) with its picture as `<number>.jpg`, several as `<number>.0.jpg`, ...

    Raises:
        DataError: as `to_llava`.
    """
    if shard_rows < 1:
        raise DataError(f"{shard_rows} rows in a shard", expected="at least 1", where="shard_rows")
    out.parent.mkdir(parents=True, exist_ok=True)
    _make_new(out)
    paths = []
    rows = _samples(dataset)
    for number in range((len(dataset) + shard_rows - 1) // shard_rows):
        paths.append(out / f"{number:05d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for place, sample in zip(range(shard_rows), rows, strict=False):
                _add_sample(tar, f"{number * shard_rows + place:09d}", sample, write_region)
    write_manifest([open_shard(path) for path in paths])
    return out


def _make_new(out: Path) -> None:
    try:
        out.mkdir()
    except FileExistsError:
        raise DataError(f"{out} exists", expected="a new folder", where="out", fix="another name") from None


def _samples(dataset: Dataset) -> Iterator[Sample]:
    return (dataset[index] for index in range(len(dataset)))


def _media(sample: Sample) -> list[Medium]:
    media = [medium for turn in sample.turns for medium in turn.media]
    other = next((medium.modality for medium in media if medium.modality != "image"), None)
    if other:
        raise DataError(f"a medium of kind {other!r}", expected="pictures only", where=describe(sample))
    return media


def _bytes(medium: Medium, sample: Sample) -> tuple[bytes, str]:
    """The picture's file as it is, and the extension that its content asks for."""
    from PIL import Image

    source: Any = medium.source
    if isinstance(source, (str, os.PathLike)):
        load_image(source, describe(sample))  # refuses what nobody could read later
        data = Path(source).read_bytes()
    elif isinstance(source, (bytes, bytearray, memoryview)):
        load_image(source, describe(sample))
        data = bytes(source)
    else:
        buffer = io.BytesIO()
        load_image(source, describe(sample)).save(buffer, "PNG")
        data = buffer.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        return data, _EXTENSIONS[str(image.format)]


def _row(sample: Sample, images: list[str], write_region: WriteRegion) -> dict[str, Any]:
    row: dict[str, Any] = {"id": sample.id}
    if images:
        row["image"] = images[0] if len(images) == 1 else images
    row["conversations"] = [
        {
            "from": _ROLES[turn.role],
            "value": "".join(_text(part, turn.role, sample, write_region) for part in turn.parts),
        }
        for turn in sample.turns
    ]
    return row | {key: value for key, value in sample.meta.items() if key not in row and _is_json(value)}


def _text(part: Text | Medium | Region, role: str, sample: Sample, write_region: WriteRegion) -> str:
    if isinstance(part, Medium):
        return PLACEHOLDER
    if isinstance(part, Region):
        return write_region(part)
    if role == "user" and PLACEHOLDER in part.text:
        raise DataError(
            f"a user says {PLACEHOLDER} literally",
            expected="text that LLaVA JSON can hold: there it always stands for a picture",
            where=describe(sample),
            fix="change the text, or leave out the row",
        )
    return part.text


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _add_sample(tar: tarfile.TarFile, key: str, sample: Sample, write_region: WriteRegion) -> None:
    media = _media(sample)
    names = []
    for index, medium in enumerate(media):
        data, extension = _bytes(medium, sample)
        names.append(f"{key}.{extension}" if len(media) == 1 else f"{key}.{index}.{extension}")
        _add(tar, names[-1], data)
    _add(tar, f"{key}.json", json.dumps(_row(sample, names, write_region), ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
