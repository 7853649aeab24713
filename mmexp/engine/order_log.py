"""The sequence of samples that a run trained on, one line a micro-batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from mmexp.whole import write_text

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from mmexp.contracts import Batch
    from mmexp.engine.module import TrainingModule


class OrderLog(Callback):
    """Writes `micro_batch`, `ids` as `dataset/id`, and `dropped` if there are any; a resumed run goes on behind its
    checkpoint. Each further process writes its own file, `data_order.rank1.jsonl`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stream: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        rank = trainer.global_rank
        file = self.file.with_suffix(f".rank{rank}.jsonl") if rank else self.file
        _keep_before(file, trainer.datamodule.position)  # type: ignore[attr-defined]
        self._stream = file.open("a", encoding="utf-8")

    def on_train_batch_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        ids = _named(batch.datasets, batch.ids) if batch.num_supervised else []  # a batch that lost all is one blank
        line: dict[str, Any] = {"micro_batch": trainer.datamodule.position - 1, "ids": ids}  # type: ignore[attr-defined]
        if batch.dropped:
            line["dropped"] = {
                reason: _named(batch.dropped_datasets[reason], ids) for reason, ids in batch.dropped.items()
            }
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()

    def teardown(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:  # type: ignore[override]
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _named(datasets: Sequence[str], ids: Sequence[str]) -> list[str]:
    return [f"{dataset}/{sample}" for dataset, sample in zip(datasets, ids, strict=True)]


def _keep_before(file: Path, position: int) -> None:
    """Removes lines of micro-batches that a resumed run is about to do again, and one that a kill has cut."""
    if not file.is_file():
        return
    lines = file.read_text(encoding="utf-8").split("\n")
    kept = [line for line in lines[:-1] if json.loads(line)["micro_batch"] < position]
    write_text(file, "".join(f"{line}\n" for line in kept))
