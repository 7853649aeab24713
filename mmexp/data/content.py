"""Media by their content: the same name for the same bytes, wherever they lie."""

from __future__ import annotations

import hashlib
import os
import stat
from functools import lru_cache
from typing import Any


def content_key(source: Any, num_media: int = 1) -> str:
    """The SHA-256 of a file or of bytes in hex digits, empty for what is neither.

    Args:
        source: As of `Medium`.
        num_media: As of `FeatureLookup.key`; above 1 it becomes part of the key.
    """
    if isinstance(source, str | os.PathLike):
        digest = _digest_of_file(os.fspath(source))
    else:
        digest = hashlib.sha256(source).hexdigest() if isinstance(source, bytes | bytearray | memoryview) else ""
    return f"{digest}-{num_media}" if digest and num_media > 1 else digest


def _digest_of_file(file: str) -> str:
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            return ""  # reading a pipe would wait; what is wrong with it is said where it is decoded
        return _digest(file, status.st_ino, status.st_mtime_ns, status.st_size)
    except OSError:
        return ""


@lru_cache(maxsize=2**18)
def _digest(file: str, inode: int, changed_ns: int, size: int) -> str:
    """Hashes a file again only when it looks changed."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def forget_files() -> None:
    """Hashes every file again when it is asked for: for measurements."""
    _digest.cache_clear()
