"""The run directory: its files, its manifest, and the lock that keeps two processes out of one run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mmexp import __version__
from mmexp.errors import CheckpointError, DataError
from mmexp.whole import write_json

_PACKAGES = ("torch", "lightning", "transformers", "hydra-core", "peft", "safetensors", "pillow")
_FREE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class RunDir:
    """Paths of one run: `outputs/<name>/<stage>/<run_id>/`."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Files to resume from."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """Files to hand on to the next stage."""
        return self.path / "weights"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def manifest_file(self) -> Path:
        """What the run is and how it stands."""
        return self.path / "manifest.json"

    @property
    def results(self) -> Path:
        """Every figure, {split: {benchmark: {metric: value}}}."""
        return self.path / "results.json"

    def manifest(self) -> dict[str, Any]:
        """The manifest, empty when there is none yet.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.manifest_file.is_file():
            return {}
        try:
            return json.loads(self.manifest_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"not JSON: {error}", where=str(self.manifest_file)) from error

    def update_manifest(self, **values: Any) -> None:
        """Merges `values` into the manifest, atomically."""
        write_json(self.manifest_file, self.manifest() | values)

    @property
    def is_blank(self) -> bool:
        """Whether nothing has been trained in it: no record of a step, no checkpoint, no weights."""
        record = self.path / "metrics.jsonl"
        has_record = record.is_file() and record.stat().st_size > 0
        return not has_record and not any(self.checkpoints.glob("*")) and not any(self.weights.glob("*"))

    @property
    def finished(self) -> bool:
        """Whether the run ended well and its weights are the ones it wrote."""
        manifest = self.manifest()
        return manifest.get("status") == "finished" and not self.damaged_weights(manifest)

    def damaged_weights(self, manifest: Mapping[str, Any] | None = None) -> list[str]:
        """Weight files that are missing or differ from their recorded hash."""
        entries = (manifest or self.manifest()).get("weights", [])
        return [
            name
            for entry in entries
            for name, digest in entry["files"].items()
            if not (self.path / name).is_file() or sha256(self.path / name) != digest
        ]

    @property
    def weights_identity(self) -> str:
        """What tells its weights from those of other runs; empty while it has none."""
        entries = self.manifest().get("weights")
        return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest() if entries else ""

    def lock(self) -> Path:
        """Takes the run for this process. A lock whose process is dead is taken over.

        Raises:
            CheckpointError: another living process holds it.
        """
        file = self.path / "lock.json"
        if file.is_file():
            try:
                holder = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                holder = {}
            here = holder.get("host") == socket.gethostname() and holder.get("pid") != os.getpid()
            if here and _alive(holder.get("pid", -1)):
                raise CheckpointError(
                    f"process {holder['pid']} is working on this run since {holder.get('since')}",
                    where=str(self.path),
                    fix="wait for it, end it, or start another run with run_id=<new>",
                )
        write_json(file, {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()})
        return file


def new_run_id(seed: int) -> str:
    """Time and four random characters: unique among runs that start in the same second."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-s{seed}-{secrets.token_hex(2)}"


def open_run_dir(outputs: str, name: str, stage: str, run_id: str | None, seed: int) -> RunDir:
    """The run's directory, made when it is new. A given `run_id` that exists is continued.

    Raises:
        DataError: the disk is full or the place cannot be written to.
    """
    base = Path(outputs).expanduser() / name / stage
    run = RunDir(base / (run_id or new_run_id(seed)))
    try:
        run.path.mkdir(parents=True, exist_ok=run_id is not None)
        for folder in (run.checkpoints, run.weights, run.path / "predictions"):
            folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot write: {error.strerror}", where=str(base), fix="paths.outputs=<a folder with room>"
        ) from error
    require_space(run.path, _FREE_BYTES)
    return run


def require_space(folder: Path, num_bytes: int) -> None:
    """Raises DataError when the disk behind `folder` has less room than is about to be written."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise DataError(
            f"{free / 2**20:.0f} MB free on the disk",
            expected=f"at least {num_bytes / 2**20:.0f} MB",
            where=str(folder),
            fix="make room, or paths.outputs=<a folder with room>",
        )


def provenance() -> dict[str, Any]:
    """Versions, machine and code state, for the manifest."""
    return {
        "started": _now(),
        "versions": {"mmexp": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in _PACKAGES},
        "machine": {"system": platform.system(), "cpus": os.cpu_count()},
        "git": _git_state(),
    }


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_state() -> dict[str, Any]:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}

    def ask(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=False
        ).stdout.strip()

    return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
