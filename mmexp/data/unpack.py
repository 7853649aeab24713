"""Archives of published datasets, unpacked whole or not at all."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mmexp.errors import DataError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_NOISE = "__MACOSX"


def is_archive(name: str) -> bool:
    """Whether a file of this name is one of the kinds that `unpack` knows."""
    return name.lower().endswith(ARCHIVES)


def unpack(archives: Sequence[Path], place: Path) -> None:
    """Unpacks archives into the folder `place`, which appears when all of it is there.

    An archive whose members all lie below a folder with the name of `place` does not make that folder twice.

    Raises:
        DataError: `place` is there already, an archive is broken, or a member would leave the folder.
    """
    if place.exists():
        raise DataError("the folder is there already", expected="nothing there yet", where=str(place))
    temporary = place.with_name(f".{place.name}.{os.getpid()}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for archive in archives:
            _extract(archive, temporary)
        shutil.rmtree(temporary / _NOISE, ignore_errors=True)
        inner = [entry.name for entry in temporary.iterdir()]
        (temporary / place.name if inner == [place.name] else temporary).rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                _require_inside(opened.namelist(), archive)
                opened.extractall(folder)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError(
            f"the archive is cut or broken ({error})",
            expected="a whole archive",
            where=str(archive),
            fix="remove it and fetch it again",
        ) from error


def _require_inside(names: Sequence[str], archive: Path) -> None:
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"the member {name!r} leads out of the archive", expected="paths inside of it",
                            where=str(archive), fix="get this archive from its publisher")  # fmt: skip
