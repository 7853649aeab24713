"""Features of a frozen encoder, kept in memory-mapped shards that any number of processes read and add to."""

from __future__ import annotations

import logging
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mmexp.data.content import content_key

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

SHARD_BYTES = 2**26
"""Features are written when so many have come together: what a killed process loses at most."""
_SUFFIX = ".safetensors"
_TEMPORARY = ".tmp"
_ABANDONED_S = 3600.0
"""Age at which a file of that kind belongs to nobody."""
_SETTLED_NS = 10**9
"""A folder that changed later than this may change again without showing it."""


class _Shard:
    """A file of features, opened and mapped; raises SafetensorError or OSError where it is none."""

    def __init__(self, file: Path) -> None:
        self.file, self._handle = file, safe_open(file, framework="pt")
        self.sums: dict[str, str] = self._handle.metadata() or {}
        """Per key the checksum of its features."""
        self._checked: set[str] = set()

    def read(self, key: str) -> Tensor | None:
        """The features, mapped; None where they are not those that were written."""
        try:
            features = self._handle.get_tensor(key)
        except SafetensorError:
            return None
        if key not in self._checked:
            if _checksum(features) != self.sums[key]:
                return None
            self._checked.add(key)
        return features


class FeatureStore:
    """The features of one encoder for one transform, by the content of the medium.

    Writers never touch a file that is there: each writes shards of its own under a temporary name and renames them, so
    any number of them may work at once. Readers find new shards when they miss something.

    Args:
        folder: Of the shards; the folders beside it, of other encoders and transforms, share the cap.
        max_bytes: Largest size of all these folders; nothing is added beyond it.
        shard_bytes: When a shard is written.
    """

    def __init__(self, folder: Path, max_bytes: float, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.max_bytes, self.shard_bytes = folder, max_bytes, shard_bytes
        self.num_written = self.bytes_written = 0
        self.closed = ""
        """Why nothing is added any more; empty while it is."""
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._files: set[str] = set()
        self._where: dict[str, _Shard] = {}
        self._seen = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "max_bytes": self.max_bytes, "shard_bytes": self.shard_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def key(self, source: Any, num_media: int = 1) -> str:
        """As `content_key`."""
        return content_key(source, num_media)

    def get(self, key: str) -> Tensor | None:
        """The features under a key, which nobody may change; None where there are none, or they are damaged."""
        if key in self._pending:
            return self._pending[key]
        if key not in self._where:
            self._look()
        shard = self._where.get(key)
        if shard is None:
            return None
        features = shard.read(key)
        if features is None:
            self._discard(shard.file, "a checksum is wrong")
        return features

    def add(self, key: str, features: Tensor) -> None:
        """Keeps float[P, E] or float[views, P, E]; what is there already, or beyond the cap, is left out."""
        if self.closed or key in self._pending or key in self._where:
            return
        self._pending[key] = features.detach().cpu().contiguous().clone()
        self._pending_bytes += _nbytes(features)
        if self._pending_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes what has come together. Where that cannot be done, a warning says so and nothing more is kept."""
        self._look()
        new = {key: features for key, features in self._pending.items() if key not in self._where}
        self._pending, self._pending_bytes = {}, 0
        if not new or self.closed:
            return
        size, used = sum(map(_nbytes, new.values())), self.bytes_used
        if used + size > self.max_bytes:
            self._close(
                f"the feature cache is full: {used / 1e9:.3g} GB of {self.max_bytes / 1e9:.3g} GB in "
                f"{self.folder.parent}; raise processor.feature_cache_gb, or delete folders there that are not needed"
            )
            return
        try:
            self._write(new)
        except OSError as error:
            self._close(f"features cannot be kept in {self.folder} ({error.strerror or error})")
            return
        self.num_written += len(new)
        self.bytes_written += size

    @property
    def bytes_used(self) -> int:
        """Size of all folders that share the cap."""
        return sum(_sizes(self.folder.parent))

    @property
    def num_kept(self) -> int:
        """Media that have features here."""
        self._look()
        return len(self._where.keys() | self._pending.keys())

    def sweep(self) -> None:
        """Removes what killed writers have left."""
        for file in self.folder.glob(f"*{_TEMPORARY}"):
            if time.time() - file.stat().st_mtime > _ABANDONED_S:
                file.unlink(missing_ok=True)

    def _look(self) -> None:
        """Opens the shards that are new since the last look."""
        try:
            changed = self.folder.stat().st_mtime_ns
            if changed == self._seen:
                return
            names = [entry.name for entry in os.scandir(self.folder) if entry.name.endswith(_SUFFIX)]
        except OSError:
            return  # no folder yet, or none that can be read
        self._seen = changed if time.time_ns() - changed > _SETTLED_NS else 0
        for name in sorted(set(names) - self._files):
            self._files.add(name)
            try:
                shard = _Shard(self.folder / name)
            except FileNotFoundError:
                continue  # another process has found it damaged
            except (OSError, SafetensorError) as error:
                self._discard(self.folder / name, str(error).splitlines()[0])
                continue
            self._where |= dict.fromkeys(shard.sums, shard)

    def _write(self, features: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        content = save(features, metadata={key: _checksum(tensor) for key, tensor in features.items()})
        self.folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        temporary = self.folder / f".{name}{_TEMPORARY}"
        try:
            temporary.write_bytes(content)
            temporary.replace(self.folder / f"{name}{_SUFFIX}")
        finally:
            temporary.unlink(missing_ok=True)

    def _discard(self, file: Path, reason: str) -> None:
        """Removes a damaged shard; its media are encoded again when their turn comes."""
        log.warning("%s is damaged (%s): removed, its features are made again", file, reason)
        self._where = {key: shard for key, shard in self._where.items() if shard.file != file}
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed (%s)", file, error.strerror or error)

    def _close(self, reason: str) -> None:
        self.closed = reason
        log.warning("%s; the run goes on and encodes what is not there", reason)


def _sizes(root: Path) -> Iterator[int]:
    """Bytes of the shards of all encoders; one that vanishes meanwhile counts nothing."""
    for file in root.glob(f"*/*{_SUFFIX}"):
        try:
            yield file.stat().st_size
        except FileNotFoundError:
            continue


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _checksum(features: Tensor) -> str:
    """CRC-32 of the bytes: it has to find damage, not deceit."""
    import torch

    content: Any = features.flatten().view(torch.uint8).numpy()
    return f"{zlib.crc32(content):08x}"
