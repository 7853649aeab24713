"""The store of features: what is written is read, by any process, and damage is found."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmexp.data.cache import FeatureStore
from mmexp.data.content import content_key

WRITER = """
import sys, torch
from pathlib import Path
from mmexp.data.cache import FeatureStore
first = int(sys.argv[2])
store = FeatureStore(Path(sys.argv[1]), 1e9, shard_bytes=4096)
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, first + 200):
    store.add(f"k{number}", torch.full((4, 8), float(number)))
store.flush()
"""


def features(number: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(number)).to(dtype)


def filled(folder: Path, count: int = 6, **settings) -> FeatureStore:
    store = FeatureStore(folder, **{"max_bytes": 1e9, **settings})
    for number in range(count):
        store.add(f"k{number}", features(number))
    store.flush()
    return store


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_store_reads_what_one_wrote(tmp_path: Path, dtype: torch.dtype) -> None:
    store, reader = FeatureStore(tmp_path / "a", 1e9), FeatureStore(tmp_path / "a", 1e9)
    assert reader.get("x") is None
    whole = features(3, dtype)
    store.add("x", whole[:3])
    assert torch.equal(store.get("x"), whole[:3]), "what waits to be written can be read already"
    assert reader.get("x") is None
    store.flush()
    found = reader.get("x")
    assert found.dtype == dtype
    assert torch.equal(found, whole[:3])
    assert FeatureStore(tmp_path / "b", 1e9).get("x") is None, "of another encoder"


def test_a_store_travels_to_a_worker_without_what_it_holds(tmp_path: Path) -> None:
    store = filled(tmp_path / "a")
    other = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 2000
    assert torch.equal(other.get("k5"), features(5))


def test_many_shards_and_nothing_twice(tmp_path: Path) -> None:
    store = filled(tmp_path / "a", 20, shard_bytes=3 * 5 * 7 * 4)
    assert len(shards(tmp_path / "a")) == 7
    assert (store.num_written, store.num_kept) == (20, 20)
    again = filled(tmp_path / "a", 20)
    assert again.num_written == 0
    assert len(shards(tmp_path / "a")) == 7


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "a"), str(first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for first in (0, 100, 300)
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    store = FeatureStore(tmp_path / "a", 1e9)
    for number in range(500):
        assert torch.equal(store.get(f"k{number}"), torch.full((4, 8), float(number)))
    assert not list((tmp_path / "a").glob(".*")), "no temporary file is left"


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_shards_only(tmp_path: Path, caplog) -> None:
    for first in range(0, 1000, 200):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "a"), str(first)]
        writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        writer.stdout.readline()
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        time.sleep(first / 200 * 0.01)
        writer.kill()
        writer.communicate()
    store = FeatureStore(tmp_path / "a", 1e9)
    with caplog.at_level(logging.WARNING):
        found = {number: store.get(f"k{number}") for number in range(1000)}
    assert not caplog.text
    assert all(torch.equal(each, torch.full((4, 8), float(n))) for n, each in found.items() if each is not None)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]


@pytest.mark.parametrize("damage", [cut, flip, lambda data: b"", lambda data: data[:5], lambda data: b"\xff" * 64])
def test_a_damaged_shard_is_found_removed_and_made_again(tmp_path: Path, damage, caplog) -> None:
    filled(tmp_path / "a", 4)
    filled(tmp_path / "a", 6)
    (file,) = (each for each in shards(tmp_path / "a") if b'"k2"' in each.read_bytes()[:2000])
    file.write_bytes(damage(file.read_bytes()))
    reader = FeatureStore(tmp_path / "a", 1e9)
    with caplog.at_level(logging.WARNING):
        found = [reader.get(f"k{number}") for number in range(6)]
    assert any(each is None for each in found[:4])
    assert all(each is None or torch.equal(each, features(number)) for number, each in enumerate(found))
    assert torch.equal(found[5], features(5))
    assert str(file) in caplog.text
    assert not file.exists()
    filled(tmp_path / "a", 6)
    assert all(torch.equal(reader.get(f"k{number}"), features(number)) for number in range(6))


def test_the_cap_counts_the_folders_of_all_encoders(tmp_path: Path, caplog) -> None:
    filled(tmp_path / "a", 6)
    used = sum(file.stat().st_size for file in shards(tmp_path / "a"))
    with caplog.at_level(logging.WARNING):
        store = filled(tmp_path / "b", 6, max_bytes=used + 100)
    assert store.num_written == 0
    assert store.get("k0") is None
    assert "processor.feature_cache_gb" in caplog.text
    store.add("k9", features(9))
    store.flush()
    assert caplog.text.count("is full") == 1
    assert filled(tmp_path / "b", 2, max_bytes=used + 2000).num_written == 2


def test_a_place_where_nothing_can_be_written_is_only_a_warning(tmp_path: Path, caplog) -> None:
    (tmp_path / "a").write_text("a file")
    with caplog.at_level(logging.WARNING):
        store = FeatureStore(tmp_path / "a" / "b", 1e9)
        store.add("x", features(0))
        store.flush()
    assert store.closed
    assert "cannot be kept" in caplog.text


def test_what_killed_writers_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    store = filled(tmp_path / "a")
    old, new = tmp_path / "a" / ".old.tmp", tmp_path / "a" / ".new.tmp"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    store.sweep()
    assert (old.exists(), new.exists()) == (False, True)


def test_keys_follow_the_content(tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    Image.new("RGB", (4, 4), (1, 2, 3)).save(file)
    first, data = content_key(str(file)), file.read_bytes()
    assert len(first) == 64
    assert first == content_key(file) == content_key(data) == content_key(memoryview(data))
    assert content_key(file, num_media=2) not in ("", first)
    Image.new("RGB", (4, 4), (9, 2, 3)).save(file)
    assert content_key(str(file)) not in ("", first), "the same place, another picture"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert [content_key(each) for each in (tmp_path, tmp_path / "absent", pipe, Image.new("RGB", (2, 2)))] == [""] * 4
