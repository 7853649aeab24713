"""A look at the data that another run has had: when it counts, and when it does not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmexp.contracts import Dataset
from mmexp.data import LlavaJsonConfig, check_kept, checked
from mmexp.data.check import PreflightReport
from tests.data.samples import Samples, make_processor, mixed


def write(folder: Path, answer: str = "a") -> LlavaJsonConfig:
    turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": answer}]
    rows = [{"id": f"r{number}", "image": f"{number}.png", "conversations": turns} for number in range(9)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return LlavaJsonConfig(path=str(folder / "rows.json"), image_root=str(folder / "images"))


@pytest.fixture
def data(tmp_path: Path) -> LlavaJsonConfig:
    (tmp_path / "images").mkdir()
    for number in range(9):
        Image.new("1", (1, 1)).save(tmp_path / "images" / f"{number}.png")
    return write(tmp_path)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills up with a 1 for every look."""
    plain, found = check_kept.preflight, []

    def counted(*args: Any) -> PreflightReport:
        found.append(1)
        return plain(*args)

    monkeypatch.setattr(check_kept, "preflight", counted)
    return found


def test_the_same_data_is_looked_at_once(data: LlavaJsonConfig, looks: list[int], tmp_path: Path) -> None:
    (rows, first), (_, second) = (checked(data, make_processor(), 5, tmp_path / "c") for _ in range(2))
    assert len(rows) == 9
    assert dataclasses.asdict(first) == dataclasses.asdict(second)
    assert second.num_tokenised == 5
    assert len(second.files) == 9
    assert len(looks) == 1


def test_anything_else_is_looked_at_anew(
    data: LlavaJsonConfig, looks: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, cache = make_processor(), tmp_path / "c"

    def look(**changes: Any) -> int:
        before = len(looks)
        checked(**{"config": data, "processor": processor, "max_rows": 5, "cache": cache, **changes})
        return len(looks) - before

    assert look() == 1
    assert look() == 0
    assert look(max_rows=6) == 1
    assert look(processor=replace(processor, max_length_tokens=77)) == 1
    assert look(processor=replace(processor, template=replace(processor.template, max_answer_tokens=4))) == 1
    assert look(cache=None) == 1
    assert look(config=write(tmp_path, "another answer")) == 1
    write(tmp_path)
    assert look() == 0
    monkeypatch.chdir(tmp_path)
    assert look() == 1, "relative paths would be others"
    assert look() == 0


def test_other_files_are_looked_at_anew(data: LlavaJsonConfig, looks: list[int], tmp_path: Path) -> None:
    def look(config: LlavaJsonConfig = data) -> int:
        before = len(looks)
        checked(config, make_processor(), 5, tmp_path / "c")
        return len(looks) - before

    file = tmp_path / "images" / "4.png"
    look()
    Image.new("1", (2, 2)).save(file)
    assert look() == 1
    file.unlink()
    assert look() == 1
    assert look() == 0, "a file that is still missing"
    Image.new("1", (1, 1)).save(file)
    assert look() == 1
    assert look() == 0
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere")
    assert look(replace(data, image_root=str(tmp_path / "elsewhere"))) == 1, "the same rows, other pictures"


def test_what_is_missing_or_broken_is_told_every_time(
    data: LlavaJsonConfig, looks: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images" / "4.png").unlink()
    for _ in range(2):
        _, report = checked(data, make_processor(), 5, tmp_path / "c")
        assert [bad["id"] for bad in report.bad_media] == ["r4"]
    assert len(looks) == 1
    (file,) = (tmp_path / "c").iterdir()
    file.write_text(file.read_text()[:-20])
    assert checked(data, make_processor(), 5, tmp_path / "c")[1].num_rows == 9
    assert "is damaged" in caplog.text
    rows = json.loads((tmp_path / "rows.json").read_text())
    rows[2]["conversations"].pop()
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for _ in range(2):
        assert len(checked(data, make_processor(), 5, tmp_path / "c")[1].errors) == 1
    assert len(looks) == 4


@dataclasses.dataclass(frozen=True)
class WithoutHash:
    """Data that does not know what it is."""

    def build(self) -> Dataset:
        return Samples(mixed(5))


def test_data_without_a_hash_of_its_own_and_a_full_disk_keep_nothing(
    data: LlavaJsonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checked(WithoutHash(), make_processor(), 5, tmp_path / "c")
    assert not (tmp_path / "c").exists()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(check_kept, "write_json", full)
    assert checked(data, make_processor(), 5, tmp_path / "c")[1].num_rows == 9
    assert "not kept" in caplog.text
