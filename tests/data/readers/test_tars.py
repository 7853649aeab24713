"""webdataset tars: random access, equal to the files, and a name for every way a shard can be broken."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmexp.contracts import Sharded
from mmexp.data import TarsConfig, fingerprint
from mmexp.data.shards import MANIFEST, find_tars, write_manifest
from mmexp.data.tarindex import open_shard
from mmexp.errors import ConfigError, DataError
from tests.data.readers.make import caption_tar, complaint, everything, flat, jpeg, write, write_tar


def shards(folder: Path, *counts: int) -> TarsConfig:
    for number, count in enumerate(counts):
        caption_tar(folder / f"{number:03d}.tar", count, start=100 * number)
    return TarsConfig(path=str(folder), prompts=("Say.",))


def first_read(data, index):
    return data[index].id


def test_samples_of_several_shards(tmp_path):
    data = shards(tmp_path, 3, 1, 4).build()
    assert isinstance(data, Sharded)
    assert data.shard_sizes == (3, 1, 4)
    assert [sample.id for sample in everything(data)] == [
        "00000",
        "00001",
        "00002",
        "00100",
        "00200",
        "00201",
        "00202",
        "00203",
    ]
    assert flat(data[-1]) == [("user", jpeg(211), "\nSay."), ("assistant", "caption 203")]
    assert data[0].dataset == tmp_path.name
    with pytest.raises(IndexError):
        data[8]


def test_workers_need_no_open_file(tmp_path):
    data = shards(tmp_path, 2, 2).build()
    assert data[3].id == "00101"
    again = pickle.loads(pickle.dumps(data))
    assert again[2] == data[2]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(first_read, (data, 1)) == "00001"


def test_index_is_kept_beside_the_tar_and_follows_it(tmp_path):
    config = shards(tmp_path, 3)
    before = fingerprint(config.build())
    index = tmp_path / ".000.tar.index"
    written = index.stat().st_mtime_ns
    assert fingerprint(config.build()) == before
    assert index.stat().st_mtime_ns == written
    index.write_bytes(index.read_bytes()[:-5])
    assert len(everything(config.build())) == 3
    caption_tar(tmp_path / "000.tar", 5)
    assert len(everything(config.build())) == 5
    assert fingerprint(config.build()) != before


def test_read_only_folder_keeps_its_index_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = shards(tmp_path / "tars", 3)
    (tmp_path / "tars" / ".000.tar.index").mkdir()  # no file can be put there, even by root
    assert len(everything(config.build())) == 3
    (kept,) = (tmp_path / "cache/mmexp/tars").iterdir()
    stamp = kept.stat().st_mtime_ns
    assert len(everything(config.build())) == 3
    assert kept.stat().st_mtime_ns == stamp


def test_rows_of_other_formats_and_minigpt4_captions(tmp_path):
    talk = {
        "conversations": [{"from": "human", "value": "<image>a<image>"}, {"from": "gpt", "value": "b"}],
        "image": "old",
    }
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    members = [
        ("x/1.0.jpg", jpeg(1)), ("x/1.1.png", jpeg(2)), ("x/1.json", json.dumps(talk).encode()),
        ("x/2.json", json.dumps(chat).encode()),
        ("x/3.jpg", jpeg(3)), ("x/3.json", json.dumps({"caption": "three", "url": "u"}).encode()),
        ("x/4.webp", jpeg(4)), ("x/4.txt", "four \u00e9\n".encode()), ("x/4.json", b'{"key": "k"}'),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    one, two, three, four = everything(TarsConfig(path=str(tmp_path / "a.tar"), prompts=("p",)).build())
    assert flat(one) == [("user", jpeg(1), "a", jpeg(2)), ("assistant", "b")]
    assert flat(two) == [("user", "hi"), ("assistant", "ho")]
    assert (flat(three)[1], three.meta) == (("assistant", "three"), {"url": "u"})
    assert (flat(four)[1], four.meta) == (("assistant", "four \u00e9"), {"key": "k"})
    assert [sample.id for sample in (one, four)] == ["x/1", "x/4"]


def widths(data):
    media = [medium for turn in data[0].turns for medium in turn.media]
    return [Image.open(io.BytesIO(medium.source)).width for medium in media]


def row_of(count, **fields):
    turns = [{"from": "human", "value": "<image>" * count}, {"from": "gpt", "value": "a"}]
    return json.dumps({"conversations": turns, **fields}).encode()


def test_pictures_of_different_kinds_keep_their_order(tmp_path):
    kinds = ["webp", "jpg", "tiff", "png", "jpg", "jpeg", "bmp", "jpg", "webp", "jpg", "jpg", "webp"]
    members = [(f"k.{number}.{kind}", jpeg(8 + number)) for number, kind in enumerate(kinds)]
    write_tar(tmp_path / "a.tar", [*members[::-1], ("k.json", row_of(len(kinds)))])
    assert widths(TarsConfig(path=str(tmp_path / "a.tar")).build()) == [8 + number for number in range(len(kinds))]


@pytest.mark.parametrize(
    ("named", "order"), [(["k.1.jpg", "k.0.jpg"], [9, 8]), (["x.jpg", "y.jpg"], [8, 9]), (None, [8, 9])]
)
def test_a_row_that_names_its_members_orders_them(tmp_path, named, order):
    members = [("d/k.0.jpg", jpeg(8)), ("d/k.1.jpg", jpeg(9)), ("d/k.json", row_of(2, image=named))]
    assert widths(TarsConfig(path=str(write_tar(tmp_path / "a.tar", members))).build()) == order


def test_pixel_boxes_in_a_tar_are_shares(tmp_path):
    objects = {"ref": [], "bbox": [[0, 2, 4, 4]]}
    messages = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "<bbox>"}]
    row = json.dumps({"messages": messages, "objects": objects}).encode()
    data = TarsConfig(path=str(write_tar(tmp_path / "a.tar", [("k.jpg", jpeg(8, 4)), ("k.json", row)]))).build()
    assert flat(data[0])[1] == ("assistant", ("", 0, (0.0, 0.5, 0.5, 1.0)))


def test_limit(tmp_path):
    assert len(shards(tmp_path, 2, 2).build()) == 4
    assert len(TarsConfig(path=str(tmp_path), limit=3).build()) == 3
    with pytest.raises(ConfigError, match=r"data\.limit: -1"):
        TarsConfig(path=str(tmp_path), limit=-1)


def test_paths(tmp_path):
    shards(tmp_path, 1, 1, 1, 1)
    names = [f"00{number}.tar" for number in range(4)]
    assert [file.name for file in find_tars(str(tmp_path / "{000..003}.tar"))] == names
    assert [file.name for file in find_tars(str(tmp_path / "00[12].tar"))] == names[1:3]
    assert [file.name for file in find_tars(str(tmp_path / "{003,000}.tar"))] == ["003.tar", "000.tar"]
    assert len(TarsConfig(path=str(tmp_path / "{000..002}.tar")).build()) == 3
    assert len(TarsConfig(path=str(tmp_path), limit=2).build()) == 2
    for path, message in [
        (tmp_path / "{000..009}.tar", "6 of 10 tars are missing, the first is"),
        (tmp_path / "x*.tar", "no such tar"),
        (tmp_path / "none", "1 of 1 tars are missing"),
    ]:
        with pytest.raises(DataError, match=message):
            find_tars(str(path))
    for path in ("https://x/{0..1}.tar", "pipe:cat x", "s3://b/x.tar", "-"):
        with pytest.raises(DataError, match="is an address"):
            find_tars(path)


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.0, 0.9999), seed=st.integers(0, 5))
def test_a_tar_cut_anywhere_is_refused(tmp_path_factory, share, seed):
    folder = tmp_path_factory.mktemp("cut")
    path = caption_tar(folder / "a.tar", 3 + seed % 2)
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # behind it lie only the end mark and its padding
    path.write_bytes(whole[: int(end * share)])
    with pytest.raises(DataError) as error:
        TarsConfig(path=str(path)).build()
    assert "a.tar" in str(error.value)


def test_cut_between_members_counts_what_is_there(tmp_path):
    path = caption_tar(tmp_path / "a.tar", 4)
    path.write_bytes(path.read_bytes()[: 512 * 2 * 5 + 512 * 1 * 2])
    found = complaint(TarsConfig(path=str(path)))
    assert "the tar is cut or broken (" in found, found
    assert "members can be read, the last one is '0000" in found


def test_broken_header_in_the_middle(tmp_path):
    path = caption_tar(tmp_path / "a.tar", 4)
    content = bytearray(path.read_bytes())
    start = content.index(b"00002.jpg")
    content[start + 148 : start + 156] = b"999999\0 "
    path.write_bytes(content)
    found = complaint(TarsConfig(path=str(path)))
    assert "4 members can be read, the last one is '00001.txt'" in found, found
    assert "no header at byte" in found


@pytest.mark.parametrize("mode", ["w:gz", "tgz"])
def test_compressed_tars_are_refused_with_advice(tmp_path, mode):
    path = caption_tar(tmp_path / "plain.tar", 2)
    name = tmp_path / "z" / ("a.tar" if mode == "w:gz" else "a.tgz")
    name.parent.mkdir()
    name.write_bytes(gzip.compress(path.read_bytes()))
    found = complaint(TarsConfig(path=str(name)))
    assert "a compressed tar" in found
    assert "gunzip" in found
    if mode == "tgz":
        assert "gunzip" in complaint(TarsConfig(path=str(name.parent)))


def test_changed_while_in_use(tmp_path):
    data = shards(tmp_path, 3).build()
    assert data[0].id == "00000"
    with open(tmp_path / "000.tar", "ab") as tar:
        tar.write(b"\0" * 512)
    with pytest.raises(DataError, match="changed while it was in use"):
        data[1]


def test_incomplete_samples_are_counted_and_left_out_only_when_allowed(tmp_path, caplog):
    members = [(f"{n:03d}.{e}", jpeg() if e == "jpg" else b"text") for n in range(20) for e in ("jpg", "txt")]
    write_tar(tmp_path / "a.tar", [*members[:5], *members[6:-1]])
    found = complaint(TarsConfig(path=str(tmp_path)))
    assert "2 of 20 samples are incomplete: a.tar: 002 has only jpg; a.tar: 019 has only jpg" in found, found
    data = TarsConfig(path=str(tmp_path), incomplete_share=0.1).build()
    assert (len(data), data.shard_sizes, data[2].id) == (18, (18,), "003")
    assert "2 of 20 samples are incomplete and left out" in caplog.text
    assert "incomplete" in complaint(TarsConfig(path=str(tmp_path), incomplete_share=0.09))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x"), ("a.txt", b"\xff")], "a.txt: byte 0 is not UTF-8"),
        ([("a.jpg", b"x"), ("a.txt", b"  ")], "`txt` is empty"),
        ([("a.jpg", b"x"), ("a.json", b'{"caption": ')], "a.json:1: broken JSON"),
        ([("a.jpg", b"x"), ("a.json", b'{"caption": 1, "caption": 2}')], "the key 'caption' twice"),
        ([("a.jpg", b"x"), ("a.json", b"[1]")], "a.json: a list"),
        ([("a.jpg", b"x"), ("a.json", b'{"text": "x"}')], "sample 'a' (row 0): `caption` is missing"),
        (
            [("a.jpg", b"x"), ("a.json", b'{"conversations": [{"from": "human", "value": "q"}]}')],
            "0 <image> in the human turns and 1",
        ),
        ([("a.jpg", b"x"), ("a.txt", b"t"), ("b.jpg", b"x"), ("b.txt", b"t"), ("a.png", b"x")], "the sample 'a' twice"),
        ([("a.jpg", b"x"), ("a.JPG", b"x")], "a.jpg twice"),
        ([("README", b"x")], "no sample"),
        ([], "no sample"),
    ],
)
def test_broken_members(tmp_path, members, message):
    write_tar(tmp_path / "s.tar", members)
    found = complaint(TarsConfig(path=str(tmp_path / "s.tar")))
    assert message in found, found
    assert "s.tar" in found


def test_links_in_a_tar_are_refused(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    assert "'a.jpg' is a link or a device" in complaint(TarsConfig(path=str(tmp_path)))


def test_not_a_tar(tmp_path):
    assert "cut or broken" in complaint(TarsConfig(path=str(write(tmp_path, "no tar at all", "a.tar"))))
    assert "cut or broken" in complaint(TarsConfig(path=str(write(tmp_path, b"", "b.tar"))))


def test_manifest(tmp_path, caplog):
    caplog.set_level("INFO")
    config = shards(tmp_path, 3, 2)
    config.build()
    assert "no manifest.json" in caplog.text
    write_manifest([open_shard(tar) for tar in find_tars(str(tmp_path))])
    assert len(config.build()) == 5
    said = json.loads((tmp_path / MANIFEST).read_text())
    for change, message in [
        ({"rows": 4}, "3 samples\n  expected: 4"),
        ({"sha256": "0" * 64}, "sha256 "),
    ]:
        write(tmp_path, {"shards": {**said["shards"], "000.tar": {**said["shards"]["000.tar"], **change}}}, MANIFEST)
        assert message in complaint(config)
    write(tmp_path, {"shards": {"001.tar": said["shards"]["001.tar"]}}, MANIFEST)
    assert "000.tar is not in the manifest" in complaint(config)
    write(tmp_path, "{}", MANIFEST)
    assert "no `shards`" in complaint(config)


def test_changed_bytes_of_equal_size_are_found_by_the_manifest(tmp_path):
    config = shards(tmp_path, 3)
    write_manifest([open_shard(tmp_path / "000.tar")])
    content = bytearray((tmp_path / "000.tar").read_bytes())
    place = content.index(b"caption 1")
    content[place : place + 1] = b"C"
    (tmp_path / "000.tar").write_bytes(content)
    os.utime(tmp_path / "000.tar", ns=(1, 1))
    assert "as the manifest says" in complaint(config)


def test_a_missing_shard_of_the_manifest_is_an_error(tmp_path):
    config = shards(tmp_path, 3, 2)
    write_manifest([open_shard(tar) for tar in find_tars(str(tmp_path))])
    (tmp_path / "001.tar").unlink()
    assert "001.tar of the manifest is not here" in complaint(config)
    assert len(TarsConfig(path=str(tmp_path / "000.tar")).build()) == 3


def test_order_does_not_matter(tmp_path):
    data = shards(tmp_path, 5, 5, 5).build()
    places = list(range(15))
    straight = [data[place] for place in places]
    random.Random(0).shuffle(places)
    assert [data[place] for place in places] == [straight[place] for place in places]
