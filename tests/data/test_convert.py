"""Conversion: what is written can be read, and says the same."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mmexp.contracts import Medium, Region, Sample, Text, Turn
from mmexp.data import LlavaJsonConfig, TarsConfig
from mmexp.data.convert import to_llava, to_webdataset
from mmexp.errors import DataError
from tests.data.samples import Samples


def write_region(region: Region) -> str:
    return region.phrase + "".join(str(list(box)) for box in region.boxes)


@pytest.fixture
def rows(tmp_path: Path) -> Samples:
    file = tmp_path / "photo.jpeg"
    Image.new("RGB", (9, 7), "red").save(file)
    drawn = Image.new("RGB", (5, 5), "blue")
    said = [
        (Medium(source=str(file)), Text(text="\nWhere is "), Region(boxes=((0.1, 0.2, 0.3, 0.4),), phrase="it")),
        (Medium(source=str(file)), Text(text=" and "), Medium(source=drawn), Text(text="?")),
        (Text(text="no picture"),),
    ]
    return Samples(
        Sample(
            id=f"s{number}",
            turns=(
                Turn(role="system", parts=(Text(text="be kind"),)),
                Turn(role="user", parts=parts),
                Turn(role="assistant", parts=(Text(text="yes \u00e9"),)),
            ),
            meta={"type": number, "unwritable": object()},
        )
        for number, parts in enumerate(said)
    )


def test_llava_json_reads_back(rows: Samples, tmp_path: Path) -> None:
    path = to_llava(rows, tmp_path / "out", write_region)
    again = LlavaJsonConfig(path=str(path)).build()
    assert [len(turn.media) for sample in again for turn in sample.turns] == [0, 1, 0, 0, 2, 0, 0, 0, 0]
    assert [turn.text for turn in again[0].turns] == ["be kind", "\nWhere is it[0.1, 0.2, 0.3, 0.4]", "yes \u00e9"]
    assert again[1].turns[1].text == " and ?"
    assert [sample.meta for sample in again] == [{"type": number} for number in range(3)]
    first = Path(again[0].turns[1].media[0].source)
    assert first.suffix == ".jpg"
    assert first.read_bytes() == (tmp_path / "photo.jpeg").read_bytes()
    assert len(list((tmp_path / "out/images").rglob("*.*"))) == 2, "equal pictures are stored once"


def test_shards_have_a_manifest_that_is_right(rows: Samples, tmp_path: Path) -> None:
    out = to_webdataset(rows, tmp_path / "tars", write_region, shard_rows=2)
    shards = json.loads((out / "manifest.json").read_text())["shards"]
    assert {name: shard["rows"] for name, shard in shards.items()} == {"00000.tar": 2, "00001.tar": 1}
    for name, shard in shards.items():
        assert shard["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
    with tarfile.open(out / "00000.tar") as tar:
        assert tar.getnames() == [
            "000000000.jpg", "000000000.json", "000000001.0.jpg", "000000001.1.png", "000000001.json",
        ]  # fmt: skip
    again = TarsConfig(path=str(out)).build()
    assert [again[index].turns[-1].text for index in range(3)] == ["yes \u00e9"] * 3
    assert [len(again[index].turns[1].media) for index in range(3)] == [1, 2, 0]


def test_a_picture_that_cannot_be_read_ends_the_conversion(rows: Samples, tmp_path: Path) -> None:
    (tmp_path / "photo.jpeg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="not a picture"):
        to_llava(rows, tmp_path / "out", write_region)


def test_an_existing_folder_and_a_literal_placeholder_are_refused(rows: Samples, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists"):
        to_llava(rows, tmp_path / "out", write_region)
    literal = Sample(id="l", turns=(Turn(role="user", parts=(Text(text="say <image>"),)), rows[0].turns[2]))
    with pytest.raises(DataError, match="literally"):
        to_llava(Samples([literal]), tmp_path / "new", write_region)
