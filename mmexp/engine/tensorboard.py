"""TensorBoard as a tracker: curves and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmexp.engine.trackers import Identity


@dataclass(frozen=True, kw_only=True)
class TensorBoardConfig:
    """Event files under `<run>/tensorboard`."""

    def build(self, identity: Identity) -> TensorBoardTracker:
        from torch.utils.tensorboard import SummaryWriter

        return TensorBoardTracker(SummaryWriter(str(identity.run.path / "tensorboard")))


class TensorBoardTracker:
    """Writes figures and pictures; a continued run adds a file to those that are there."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def update_config(self, values: Mapping[str, Any]) -> None:
        """It keeps no configuration."""

    def catch_up(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The files of earlier processes have them."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_predictions(self, name: str, file: Path, run_dir: Path, step: int) -> None:
        """It has no tables."""

    def log_pictures(self, name: str, files: Sequence[Path], step: int) -> None:
        import numpy as np
        from PIL import Image

        for file in files:
            with Image.open(file) as picture:
                self._writer.add_image(
                    f"{name}/{file.stem}", np.asarray(picture.convert("RGB")), step, dataformats="HWC"
                )

    def log_weights(self, folder: Path) -> None:
        """It keeps no files."""

    def finish(self, code: int) -> None:
        self._writer.close()
