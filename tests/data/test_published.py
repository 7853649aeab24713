"""Published datasets: where they are said to be, what arrives from a hub, and archives."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from mmexp.data import LlavaJsonConfig
from mmexp.data.fetch import Found, Need, fetch
from mmexp.data.published import Published
from mmexp.data.unpack import unpack
from mmexp.errors import ConfigError, DataError


def zipped(file: Path, *names: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return file


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """A dataset `owner/set` of an annotation file and an archive of pictures; returns what is asked of it."""
    store, asked = tmp_path / "hub", []
    zipped(store / "images.zip", "000/1.jpg", "001/2.jpg")
    (store / "rows.json").write_text("[]")

    def repo_info(self: Any, repo: str, **settings: Any) -> Any:
        asked.append(("info", repo))
        files = [SimpleNamespace(rfilename=file.name, size=file.stat().st_size) for file in store.iterdir()]
        return SimpleNamespace(siblings=files)

    def snapshot_download(repo: str, *, allow_patterns: list[str], local_dir: Path, **settings: Any) -> str:
        asked.append(("download", allow_patterns))
        local_dir.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            (local_dir / name).write_bytes((store / name).read_bytes())
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return asked


def needs(root: Path) -> list[Need]:
    def one(what: str, place: str, *files: str) -> Need:
        file = root / place
        return Need(what=what, source="owner/set", repo_type="dataset", folder=file.parent, file=file, files=files,
                    estimate_bytes=5)  # fmt: skip

    return [one("path", "set/rows.json", "rows.json"), one("image_root", "set/images", "images.zip")]


def test_files_arrive_and_archives_are_unpacked(hub: list[tuple[str, Any]], tmp_path: Path) -> None:
    seen: list[Found] = []
    assert fetch(needs(tmp_path), seen.append) == []
    assert [found.is_here for found in seen] == [False, False]
    assert (tmp_path / "set/images/001/2.jpg").read_text() == "001/2.jpg"
    assert not list((tmp_path / "set").glob(".images*")), "nothing half done stays"
    assert [word for kind, words in hub if kind == "download" for word in words] == ["rows.json", "images.zip"]
    assert fetch(needs(tmp_path), seen.append) == []
    assert [found.is_here for found in seen[2:]] == [True, True]


def test_listing_downloads_nothing(hub: list[tuple[str, Any]], tmp_path: Path) -> None:
    missing = fetch(needs(tmp_path), lambda found: None, download=False)
    assert [found.num_bytes for found in missing] == [2, (tmp_path / "hub/images.zip").stat().st_size]
    assert not any(kind == "download" for kind, _ in hub)


def test_a_file_that_the_hub_does_not_have_is_missing_with_what_is_there(hub: list[Any], tmp_path: Path) -> None:
    wrong = Need(what="path", source="owner/set", repo_type="dataset", folder=tmp_path, file=tmp_path / "x.json",
                 files=("x.json",))  # fmt: skip
    (found,) = fetch([wrong], lambda found: None)
    assert "has no x.json but" in found.remark
    assert not found.is_offline


def test_offline_is_found_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def repo_info(self: Any, repo: str, **settings: Any) -> Any:
        asked.append(repo)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    missing = fetch(needs(tmp_path), lambda found: None)
    assert asked == ["owner/set"]
    assert [(found.is_offline, found.num_bytes, found.remark) for found in missing] == [(True, 5, "no network")] * 2


def test_offline_an_archive_that_somebody_brought_is_unpacked(tmp_path: Path) -> None:
    need = Need(what="coco", source=None, folder=tmp_path, file=tmp_path / "train2017", files=("train2017.zip",),
                page="http://images.cocodataset.org/zips/train2017.zip")  # fmt: skip
    (found,) = fetch([need], lambda found: None)
    assert found.remark == f"published at {need.page}"
    zipped(tmp_path / "train2017.zip", "train2017/1.jpg", "train2017/2.jpg")
    assert fetch([need], lambda found: None, download=False)[0].remark == "downloaded, not yet unpacked"
    assert fetch([need], lambda found: None) == []
    assert sorted(file.name for file in (tmp_path / "train2017").iterdir()) == ["1.jpg", "2.jpg"]


def test_too_little_room_is_said_before_a_download(hub: list[Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=3))
    with pytest.raises(DataError, match="GB are free") as error:
        fetch(needs(tmp_path)[1:], lambda found: None)
    assert "paths.data" in str(error.value.fix)


def test_archives_that_would_leave_their_folder_or_are_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leads out"):
        unpack([zipped(tmp_path / "a.zip", "../evil.txt")], tmp_path / "a")
    cut = tmp_path / "b.zip"
    cut.write_bytes(zipped(tmp_path / "c.zip", "1.jpg").read_bytes()[:20])
    with pytest.raises(DataError, match="cut or broken"):
        unpack([cut], tmp_path / "b")
    assert not any((tmp_path / name).exists() for name in "ab")
    (tmp_path / "x").write_text("x")
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        archive.add(tmp_path / "x", "x")
    unpack([tmp_path / "c.zip", tmp_path / "d.tar"], tmp_path / "d")
    assert sorted(file.name for file in (tmp_path / "d").iterdir()) == ["1.jpg", "x"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, "hub nor page"), ({"hub": "nobody", "files": ("a",)}, "owner/name"), ({"hub": "a/b"}, "no files")],
)
def test_mistakes_in_a_source(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Published(**settings)


def test_where_files_come_from_changes_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"conversations": [{"from": "human", "value": "a"}, '
                                        '{"from": "gpt", "value": "b"}]}]')  # fmt: skip
    plain = LlavaJsonConfig(path=str(tmp_path / "rows.json"))
    told = LlavaJsonConfig(path=plain.path, published={"path": Published(page="https://textvqa.org")})
    assert plain.build().fingerprint == told.build().fingerprint
