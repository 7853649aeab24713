"""Where the members of a tar lie, looked up once per shard, so that a tar is random access like a folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmexp.data.files import SteadyFile
from mmexp.data.rowstore import FrozenRows, PackedRows
from mmexp.errors import DataError
from mmexp.whole import write_bytes

log = logging.getLogger(__name__)
_VERSION = 1
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
"""Key and extension, as webdataset splits them: at the first dot of the file's own name."""
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Shard:
    """One tar: its file, and for every sample its key and where its members lie."""

    file: SteadyFile
    rows: FrozenRows
    """Each {key, members: {extension: [first byte, bytes]}}."""
    sha256: str | None = None
    """Of the whole file, where a manifest asked for it."""

    def __len__(self) -> int:
        return len(self.rows)


def open_shard(path: str | os.PathLike[str], expected_sha256: str | None = None) -> Shard:
    """The index of a tar: from its cache when the tar still has that size and time, else read from the headers.

    The cache lies beside the tar (`.NAME.index`), or in the user's cache folder when that place is read-only.

    Args:
        path: The tar.
        expected_sha256: What a manifest says; compared once, then remembered with the index.

    Raises:
        DataError: not a plain tar, cut, broken, or not the file of the manifest.
    """
    file = SteadyFile(path, "the tar")
    for place in _places(file.path):
        if (found := _load(place, file)) is not None:
            shard, is_checked = found, found.sha256 is not None
            break
    else:
        shard, is_checked = Shard(file, _pack(_scan(file), file)), False
        _store(shard)
    if expected_sha256 and not is_checked:
        shard = Shard(file, shard.rows, _sha256(file))
        _store(shard)
    if expected_sha256 and shard.sha256 != expected_sha256:
        raise DataError(
            f"sha256 {shard.sha256}",
            expected=f"{expected_sha256}, as the manifest says",
            where=file.path,
            fix="copy the shard again, or write the manifest anew if it was changed on purpose",
        )
    return shard


def _scan(file: SteadyFile) -> Iterator[tuple[str, str, int, int]]:
    """Key, extension, first byte and size of every member that is a plain file.

    Raises:
        DataError: compressed, cut inside or between members, a broken header, links.
    """
    if file.size >= 2 and file.read(0, 2) == b"\x1f\x8b":
        fix = f"gunzip -c {os.path.basename(file.path)} > {Path(file.path).stem}.tar"
        raise DataError("a compressed tar", expected="a plain .tar: only that can be read at random places",
                        where=file.path, fix=fix)  # fmt: skip
    num_members, ignored, last = 0, 0, "nothing"
    try:
        with tarfile.open(file.path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or all of them would be kept
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    found, fix = (
                        f"the member {info.name!r} is a link or a device",
                        "tar --dereference --hard-dereference",
                    )
                    raise DataError(found, expected="plain files", where=file.path, fix=fix)
                match = _NAME.fullmatch(info.name)
                num_members, last = num_members + 1, info.name
                if match is None:
                    ignored += 1
                    continue
                yield match[1], match[2].lower(), info.offset_data, info.size
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _cut(file, num_members, last, str(error)) from error
    rest = file.read(end, min(_BLOCK, file.size - end)) if end < file.size else b""
    if len(rest) < _BLOCK:
        raise _cut(file, num_members, last, "no end mark")
    if any(rest):
        raise _cut(file, num_members, last, f"no header at byte {end:,}")
    if ignored:
        log.warning("%s: %d members have a name without extension and are no part of a sample", file.path, ignored)


def _cut(file: SteadyFile, num_members: int, last: str, reason: str) -> DataError:
    return DataError(
        f"the tar is cut or broken ({reason}): {num_members} members can be read, the last one is {last!r}",
        expected=f"a whole tar; this one has {file.size:,} bytes",
        where=file.path,
        fix="copy or make this shard again",
    )


def _pack(members: Iterator[tuple[str, str, int, int]], file: SteadyFile) -> FrozenRows:
    """Neighbouring members of one key as one sample. Raises DataError for a key or an extension twice."""
    rows, seen, current = PackedRows(), set(), None
    places: dict[str, tuple[int, int]] = {}
    for key, extension, start, size in members:
        if key != current:
            if current is not None:
                rows.append({"key": current, "members": places})
            if key in seen:
                fix = "write all members of a sample one after the other"
                raise DataError(
                    f"the sample {key!r} twice", expected="one place for each key", where=file.path, fix=fix
                )
            seen.add(key)
            current, places = key, {}
        if extension in places:
            raise DataError(f"{key}.{extension} twice", expected="one member of each extension", where=file.path)
        places[extension] = (start, size)
    if current is None:
        raise DataError("no sample", expected="members such as 000.jpg and 000.txt", where=file.path)
    rows.append({"key": current, "members": places})
    return rows.freeze()


def _places(path: str) -> list[Path]:
    """Where the cache may lie, best place first."""
    beside = Path(path).with_name(f".{Path(path).name}.index")
    name = hashlib.sha256(path.encode()).hexdigest()[:32] + ".index"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [beside, home / "mmexp" / "tars" / name]


def _head(shard: Shard) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "size": shard.file.size,
        "mtime_ns": shard.file.mtime_ns,
        "rows": hashlib.sha256(shard.rows.data).hexdigest(),
        "ends": [int(end) for end in shard.rows.offsets],
        "sha256": shard.sha256,
    }


def _store(shard: Shard) -> None:
    """Writes the cache at the first place that lets us; without one the headers are read again next time."""
    for place in _places(shard.file.path):
        try:
            write_bytes(place, json.dumps(_head(shard)).encode() + b"\n" + shard.rows.data)
            return
        except OSError:
            continue
    log.warning("%s: no place for the index of this tar; it is read again at every start", shard.file.path)


def _load(place: Path, file: SteadyFile) -> Shard | None:
    """The cached index, or None when there is none, it is damaged, or it belongs to another state of the tar."""
    import numpy as np

    try:
        head, _, data = place.read_bytes().partition(b"\n")
        found = json.loads(head)
        rows = FrozenRows(data, np.asarray(found["ends"], dtype=np.int64))
        shard = Shard(file, rows, found["sha256"])
        return shard if _head(shard) == found else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _sha256(file: SteadyFile) -> str:
    digest = hashlib.sha256()
    for block in file.chunks():
        digest.update(block)
    return digest.hexdigest()
