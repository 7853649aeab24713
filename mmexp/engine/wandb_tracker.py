"""Weights & Biases as a tracker: curves, figures, tables of answers, and weights by choice."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmexp.engine.log import console
from mmexp.engine.trackers import Identity

log = logging.getLogger(__name__)

STEP = "trainer/global_step"
"""The axis of every curve: optimizer steps."""
COLUMNS = ("id", "image", "prompt", "prediction", "target", "score")
"""Of a table of answers."""

_START_TIMEOUT_S = 30
"""How long the server may take to answer before a run is logged offline."""
_PUBLIC = "https://api.wandb.ai"


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases: online when a key is there, offline otherwise. It never stops a run and never asks."""

    project: str = "mmexp"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; null takes the account's default."""
    offline: bool = False
    """Never contact the server."""
    num_samples: int = 16
    """Answers in the table of each benchmark, from its beginning; 0 logs no tables."""
    log_weights: bool = False
    """Whether the weights that the run hands on become an artifact."""

    def build(self, identity: Identity) -> WandbTracker:
        """Opens the run, or continues the one of the same id.

        Raises:
            Exception: whatever W&B raises where it cannot even log offline.
        """
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        if not self.offline and has_key():
            try:
                return WandbTracker(self, self._open(identity, mode=None), identity)
            except Exception as error:  # its errors have no common base class: of the key, the network, the server
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                log.warning("W&B is offline for this run: %s", reason)
                wandb.teardown()  # what the try has left
        mode = "disabled" if os.environ.get("WANDB_MODE") == "disabled" else "offline"
        return WandbTracker(self, self._open(identity, mode), identity)

    def _open(self, identity: Identity, mode: Any) -> Any:
        import wandb

        with _arguments(identity.config.get("overrides", ())):
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                dir=str(identity.run.path),
                id=identity.id,
                resume="allow" if mode is None else None,
                mode=mode,
                name=identity.name,
                group=identity.group,
                job_type=identity.job_type,
                tags=list(identity.tags),
                config=dict(identity.config),
                settings=wandb.Settings(init_timeout=_START_TIMEOUT_S),
            )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        return run


class WandbTracker:
    """An open W&B run.

    Args:
        config: What to log.
        run: A `wandb.Run`.
        identity: As it was opened with.
    """

    def __init__(self, config: WandbConfig, run: Any, identity: Identity) -> None:
        self._config, self._run, self._identity = config, run, identity

    def update_config(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def catch_up(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Where the server does not have the run, all of it: of several offline directories of one run a sync keeps
        only the last one's history."""
        if self._run.resumed:
            return
        for row in rows:
            self.log({key: value for key, value in row.items() if key != "step"}, row["step"])

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, STEP: step})

    def log_predictions(self, name: str, file: Path, run_dir: Path, step: int) -> None:
        """Its first lines as a table with pictures, boxes drawn where there are some."""
        import wandb

        if not self._config.num_samples:
            return
        with file.open(encoding="utf-8") as lines:
            rows: list[Any] = [_row(json.loads(line), run_dir) for line in islice(lines, self._config.num_samples)]
        self._run.log({name: wandb.Table(columns=list(COLUMNS), data=rows), STEP: step})

    def log_pictures(self, name: str, files: Sequence[Path], step: int) -> None:
        import wandb

        self._run.log({f"{name}/{file.stem}": wandb.Image(str(file)) for file in files} | {STEP: step})

    def log_weights(self, folder: Path) -> None:
        import wandb

        if not self._config.log_weights or not any(folder.iterdir()):
            return
        artifact = wandb.Artifact(f"{self._identity.id}-weights", type="model", metadata={"run": self._identity.name})
        artifact.add_dir(str(folder), policy="immutable")  # not copied: weights stay where they are
        self._run.log_artifact(artifact)

    def finish(self, code: int) -> None:
        """Ends the run; where it is offline, says how to upload it."""
        folder = Path(self._run.dir).parent
        self._run.finish(exit_code=code)
        if folder.name.startswith("offline-run-") and folder.is_dir():
            console.print(f"W&B     wandb sync {shlex.quote(str(folder))}", soft_wrap=True, markup=False)


def has_key() -> bool:
    """Whether W&B would find a key without asking for one: in the environment, or in the netrc file."""
    import netrc

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        known = netrc.netrc(os.environ.get("NETRC") or None)
    except (OSError, netrc.NetrcParseError):
        return False
    return known.authenticators(urlsplit(os.environ.get("WANDB_BASE_URL") or _PUBLIC).netloc) is not None


@contextmanager
def _arguments(overrides: Iterable[str]) -> Iterator[None]:
    """W&B notes the command line as it was typed; this is what it sees, where secrets were taken out."""
    before = sys.argv
    sys.argv = [before[0], *overrides]
    try:
        yield
    finally:
        sys.argv = before


def _row(line: Mapping[str, Any], run_dir: Path) -> list[Any]:
    """A line of a predictions file as one of `COLUMNS`."""
    import wandb

    from mmexp.page import find_image, load_thumbnail

    image = load_thumbnail(find_image(line.get("image"), run_dir))
    boxes = dict(_boxes(line.get("boxes")))
    picture = None if image is None else wandb.Image(image, boxes=boxes or None)
    texts = (str(line.get(name) or "") for name in ("prompt", "prediction", "target"))
    return [str(line.get("id") or ""), picture, *texts, line.get("score")]


def _boxes(boxes: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Boxes of a predictions line (shares of the picture: left, top, right, bottom) as W&B draws them."""
    for number, (name, box) in enumerate(boxes.items() if isinstance(boxes, Mapping) else ()):
        if isinstance(box, list) and len(box) == 4:
            position = dict(zip(("minX", "minY", "maxX", "maxY"), map(float, box), strict=True))
            data = {"position": position, "class_id": number, "box_caption": str(name)}
            yield str(name), {"box_data": [data], "class_labels": {number: str(name)}}
