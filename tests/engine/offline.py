"""What W&B has written for an offline run, read back: LevelDB's log format around W&B's own messages."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32 * 2**10
_HEADER = struct.Struct("<IHB")
"""Checksum, length and kind of a piece of a record."""
_FIRST_PIECES = (1, 2)
_LAST_PIECES = (1, 4)


class OfflineRun:
    """The one `.wandb` file of a run's newest offline directory."""

    def __init__(self, run_dir: Path) -> None:
        import wandb
        from wandb.proto import wandb_internal_pb2 as messages

        wandb.teardown()  # its process writes the last records when it ends
        self.folder = max((run_dir / "wandb").glob("offline-run-*"))
        (file,) = self.folder.glob("*.wandb")
        self.records = [messages.Record.FromString(data) for data in _records(file.read_bytes())]  # type: ignore[attr-defined]

    @property
    def run(self) -> Any:
        """Id, group, kind of job, name, tags."""
        (found,) = (record.run for record in self.records if record.HasField("run"))
        return found

    @property
    def config(self) -> dict[str, Any]:
        changes = [record.config for record in self.records if record.HasField("config")]
        return {
            item.key: json.loads(item.value_json) for change in (self.run.config, *changes) for item in change.update
        }

    @property
    def arguments(self) -> list[str]:
        """What the command was told, as W&B notes it by itself."""
        return [text for record in self.records if record.HasField("environment") for text in record.environment.args]

    @property
    def history(self) -> list[dict[str, Any]]:
        rows = [record.history for record in self.records if record.HasField("history")]
        return [{_key(item): json.loads(item.value_json) for item in row.item} for row in rows]

    @property
    def summary(self) -> dict[str, Any]:
        changes = [record.summary for record in self.records if record.HasField("summary")]
        return {_key(item): json.loads(item.value_json) for change in changes for item in change.update}

    @property
    def exit_code(self) -> int:
        (found,) = (record.exit.exit_code for record in self.records if record.HasField("exit"))
        return found

    @property
    def artifacts(self) -> list[Any]:
        return [record.request.log_artifact.artifact if record.HasField("request") else record.artifact
                for record in self.records
                if record.HasField("artifact") or record.request.HasField("log_artifact")]  # fmt: skip

    def table(self, name: str) -> dict[str, Any]:
        """Columns and rows of a table that was logged; pictures lie under `path` of their cell."""
        for artifact in self.artifacts:
            files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
            if f"{name}.table.json" in files:
                table = json.loads(Path(files[f"{name}.table.json"]).read_text())
                cells = (cell for row in table["data"] for cell in row if isinstance(cell, dict))
                for cell in cells:
                    cell["path"] = files[cell["path"]]
                return table
        raise AssertionError(f"no table {name}")


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    at, record = 7, b""
    while at < len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER.size:
            at += left
            continue
        _, length, kind = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        record = data[at : at + length] if kind in _FIRST_PIECES else record + data[at : at + length]
        at += length
        if kind in _LAST_PIECES:
            yield record
