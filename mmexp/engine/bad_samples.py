"""The samples that a run leaves out because a medium cannot be read, one line each, every one once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from mmexp.contracts import Batch
    from mmexp.engine.module import TrainingModule

log = logging.getLogger(__name__)

_WARNINGS = 10
"""So many samples are named in the log; the file has all."""


class BadSamples(Callback):
    """Appends to bad_samples.jsonl (`id`, `dataset`, `file`, `reason`) before the batch is trained.

    A sample that comes again in a later epoch, or again after a resume, is not written twice. Each further process
    writes its own file, `bad_samples.rank1.jsonl`, since appends of several machines to one file can be lost.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: set[str] | None = None

    def on_train_batch_start(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, trainer: Trainer, pl_module: TrainingModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch.bad_media:
            rank = trainer.global_rank
            self.add(batch.bad_media, self.file.with_suffix(f".rank{rank}.jsonl") if rank else None)

    def add(self, bad: Iterable[Mapping[str, str]], file: Path | None = None) -> None:
        """Writes those that the file does not have yet, and warns of the first ones."""
        file = file or self.file
        if self._known is None:
            self._known = set(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else set()
        lines = {json.dumps(dict(entry), ensure_ascii=False, sort_keys=True): entry for entry in bad}
        new = {line: entry for line, entry in lines.items() if line not in self._known}
        if not new:
            return
        with file.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in new)
        for number, entry in enumerate(new.values(), len(self._known)):
            if number < _WARNINGS:
                log.warning("left out: sample %r of %s: %s (%s)", entry["id"], entry["dataset"] or "the data",
                            entry["reason"], entry["file"] or "no file")  # fmt: skip
            elif number == _WARNINGS:
                log.warning("further samples that are left out stand in %s", file)
        self._known |= set(new)


def read_bad_samples(folder: Path) -> list[dict[str, Any]]:
    """All samples that a run left out for a bad medium, of all its processes."""
    files = sorted(folder.glob("bad_samples*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
