"""Files that stay as they were: changes during a run are named, workers copy nothing."""

from __future__ import annotations

import multiprocessing
import os
import pickle

import pytest

from mmexp.data import files
from mmexp.data.files import SteadyFile
from mmexp.errors import DataError


def test_reads_anywhere_and_pickles_small(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)) * 4096)
    file = SteadyFile(path)
    assert file.read(258, 3) == b"\x02\x03\x04"
    assert b"".join(file.chunks(10, 2000, size=7)) == path.read_bytes()[10:2000]
    assert len(pickle.dumps(file)) < 500
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(file.read, (1, 2)) == b"\x01\x02"


def test_a_changed_file_is_named(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    file = SteadyFile(path)
    assert file.read(0, 2) == b"01"
    with pytest.raises(DataError, match="5 of 9 bytes at byte 5"):
        file.read(5, 9)
    path.write_bytes(b"01")
    with pytest.raises(DataError, match="2 bytes now, 10 when it was opened"):
        file.read(0, 2)


def test_a_replaced_file_is_named_once_it_is_opened_again(tmp_path):
    path, other = tmp_path / "a.bin", tmp_path / "b.bin"
    path.write_bytes(b"0123456789")
    other.write_bytes(b"9876543210")
    os.utime(other, ns=(1, 1))
    file = SteadyFile(path)
    assert file.read(0, 2) == b"01"
    os.replace(other, path)
    assert file.read(0, 2) == b"01"
    files._opened.cache_clear()
    with pytest.raises(DataError, match="changed"):
        file.read(0, 2)
    path.unlink()
    files._opened.cache_clear()
    with pytest.raises(DataError, match="cannot be opened any more"):
        file.read(0, 2)


def test_handles_are_few_and_closed(tmp_path):
    for number in range(files._MAX_OPEN_FILES + 20):
        path = tmp_path / str(number)
        path.write_bytes(b"x")
        assert SteadyFile(path).read(0, 1) == b"x"
    assert files._opened.cache_info().currsize <= files._MAX_OPEN_FILES
    links = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}")
    ]
    assert sum(str(tmp_path) in link for link in links) <= files._MAX_OPEN_FILES


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        SteadyFile(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        SteadyFile(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        SteadyFile("a\0b")
