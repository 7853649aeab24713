"""Which tars a path means, and the manifest that says what they should hold."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmexp.data.files import SteadyFile
from mmexp.data.jsontext import decode
from mmexp.data.tarindex import Shard
from mmexp.errors import DataError

MANIFEST = "manifest.json"
"""Lies beside the tars: {"shards": {"000.tar": {"rows": 1000, "sha256": "..."}, ...}}."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_ADDRESS = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*:|-$)")


def find_tars(path: str) -> list[Path]:
    """The tars of a file, a folder, a glob, or a brace pattern such as `cc3m/{00000..00331}.tar`, in order of names.

    Raises:
        DataError: an address, no tar, or one of a brace pattern is missing.
    """
    if _ADDRESS.match(path):
        raise DataError(f"{path!r} is an address", expected="tars on this machine", where="data.path",
                        fix="download the shards first")  # fmt: skip
    path = str(Path(path).expanduser())
    if Path(path).is_dir():
        found = sorted(file for file in Path(path).rglob("*.tar") if file.is_file())
        if not found:
            packed = next(iter(sorted([*Path(path).rglob("*.tgz"), *Path(path).rglob("*.tar.gz")])), None)
            fix = f"gunzip {packed}" if packed else None
            raise DataError("no .tar in this folder", expected="webdataset shards", where=path, fix=fix)
        return found
    names = _expand(path)
    found = [Path(file) for name in names for file in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
    absent = [str(file) for file in found if not file.is_file()]
    if absent or not found:
        what = f"{len(absent)} of {len(found)} tars are missing, the first is {absent[0]}" if absent else "no such tar"
        raise DataError(what, expected="existing tars", where=path, fix="check the range of the braces, or the glob")
    return found


def _expand(pattern: str) -> list[str]:
    """What bash makes of braces: `{a,b}` and `{000..012}` with leading zeros."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    if numbers := _RANGE.fullmatch(match[1]):
        first, last = int(numbers[1]), int(numbers[2])
        step = 1 if first <= last else -1
        width = max(map(len, numbers.groups())) if "0" in (numbers[1][:1], numbers[2][:1]) else 0
        choices = [str(number).zfill(width) for number in range(first, last + step, step)]
    else:
        choices = match[1].split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in choices for name in _expand(before + choice + after)]


def read_manifest(tars: Sequence[Path], is_whole: bool) -> dict[Path, dict[str, Any]]:
    """What the manifests beside the tars say, by tar; empty where there is none.

    Args:
        tars: The tars that were found.
        is_whole: Whether they should be all of their folders, so that one that is missing is a mistake.

    Raises:
        DataError: a manifest is broken, a tar is not in it, or one of its tars is not here.
    """
    said: dict[Path, dict[str, Any]] = {}
    for folder in sorted({tar.parent for tar in tars}):
        if not (folder / MANIFEST).is_file():
            continue
        file = SteadyFile(folder / MANIFEST, "the manifest")
        text = file.read(0, file.size).decode(errors="replace")
        shards = decode(text.strip() or "null", 0, file.path, 1)[0]
        shards = shards.get("shards") if isinstance(shards, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(entry, dict) for entry in shards.values()):
            expected = '{"shards": {"000.tar": {"rows": ..., "sha256": ...}}}'
            raise DataError("no `shards` in the manifest", expected=expected, where=file.path)
        names = {tar.name for tar in tars if tar.parent == folder}
        if unknown := sorted(names - set(shards)):
            raise DataError(f"{unknown[0]} is not in the manifest", expected="every tar of the folder", where=file.path)
        if is_whole and (absent := sorted(set(shards) - names)):
            found = f"{absent[0]} of the manifest is not here ({len(absent)} of {len(shards)} are missing)"
            raise DataError(found, expected="every tar of the manifest", where=file.path, fix="copy the missing shards")
        said.update({folder / name: shards[name] for name in names})
    return said


def require_counts(shard: Shard, said: dict[str, Any] | None) -> None:
    """Raises DataError when a shard has other than the manifest's number of samples."""
    if said is not None and said.get("rows") != len(shard):
        raise DataError(
            f"{len(shard)} samples",
            expected=f"{said.get('rows')}, as the manifest says",
            where=shard.file.path,
            fix="copy the shard again, or write the manifest anew",
        )


def write_manifest(shards: Sequence[Shard]) -> None:
    """Writes the manifest of shards that lie in one folder."""
    entries = {}
    for shard in shards:
        digest = hashlib.sha256()
        for block in shard.file.chunks():
            digest.update(block)
        entries[Path(shard.file.path).name] = {"rows": len(shard), "sha256": digest.hexdigest()}
    folder = Path(shards[0].file.path).parent
    (folder / MANIFEST).write_text(json.dumps({"shards": entries}, indent=1) + "\n", encoding="utf-8")
