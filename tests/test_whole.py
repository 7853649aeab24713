"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmexp.whole import write_bytes, write_json, write_json_lines, write_text, writing


def test_what_was_there_stays_until_all_is_written(tmp_path: Path) -> None:
    file = write_text(tmp_path / "made" / "a.txt", "old")
    with writing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
        assert temporary.parent == file.parent
        assert temporary.name.startswith("."), "hidden from who lists the folder"
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_no_trace(tmp_path: Path, error: type[BaseException]) -> None:
    file = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), writing(file) as temporary:
        temporary.write_text("half")
        raise error
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_name_that_cannot_be_taken_is_an_oserror_and_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a"):
        write_bytes(tmp_path / "a", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_it_is_on_the_disk_before_it_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, found = tmp_path / "a", []
    monkeypatch.setattr(os, "fsync", lambda number: found.append((os.fstat(number).st_size, file.exists())))
    write_bytes(file, b"1234")
    assert found == [(4, False)]


def test_many_that_write_at_once_do_not_mix(tmp_path: Path) -> None:
    file, texts = tmp_path / "a", [str(number) * 10_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(file, text), texts * 10))
    assert file.read_text() in texts
    assert list(tmp_path.iterdir()) == [file]


def test_json_is_readable_and_takes_what_is_no_unicode(tmp_path: Path) -> None:
    value = {"text": "狗 \udc80", "n": 1.5}
    file = write_json(tmp_path / "a.json", value)
    assert "狗" in file.read_text(encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8")) == value
    lines = write_json_lines(tmp_path / "a.jsonl", iter([value, {}])).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [value, {}]
