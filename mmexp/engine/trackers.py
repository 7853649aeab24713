"""Where figures go besides metrics.jsonl: what a tracker is, and all those of one run as one."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from mmexp.engine.manifest import RunDir
from mmexp.engine.metrics_file import VALIDATION
from mmexp.engine.signals import Interrupted
from mmexp.errors import MmexpError

log = logging.getLogger(__name__)

_LONGEST_ID = 48
_USER_MISTAKE = 2
"""The exit code of every command for an error of this package."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a tracker calls a run, and what it is told about it at the start."""

    run: RunDir
    """Where its files lie."""
    id: str
    """The same for every process that continues the run."""
    group: str
    """Sweep or recipe."""
    job_type: str
    """Stage, or `evaluate`."""
    name: str
    """What tells it from the others of its group."""
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration, without secrets."""


class Tracker(Protocol):
    """One run in one tracker. What it raises is reported once and stops nothing."""

    def update_config(self, values: Mapping[str, Any]) -> None:
        """Adds facts that only showed after the start."""
        ...

    def catch_up(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Gets the lines of metrics.jsonl up to where a run is continued, and takes those that it does not have."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures at an optimizer step."""
        ...

    def log_predictions(self, name: str, file: Path, run_dir: Path, step: int) -> None:
        """The predictions file of a benchmark; `run_dir` is where its relative pictures are looked for."""
        ...

    def log_pictures(self, name: str, files: Sequence[Path], step: int) -> None:
        """Picture files that belong together."""
        ...

    def log_weights(self, folder: Path) -> None:
        """The weights that the run hands on."""
        ...

    def finish(self, code: int) -> None:
        """The last call; `code` is the exit code of the process."""
        ...


class TrackerConfig(Protocol):
    """What a choice of the group `logger` holds."""

    def build(self, identity: Identity) -> Tracker:
        """Opens the run in the tracker, or continues it."""
        ...


class Tracking:
    """The trackers of one run. As a context it finishes them with the exit code of what ends it.

    Args:
        configs: By name; none on processes other than the first.
        identity: Not needed where there are no configs.
    """

    def __init__(self, configs: Mapping[str, TrackerConfig] | None = None, identity: Identity | None = None) -> None:
        self._configs, self._identity = configs or {}, identity
        self._open: dict[str, Tracker] = {}
        self._silent: set[str] = set()

    def open(self, derived: Mapping[str, Any] | None = None, metrics: Path | None = None, step: int = 0) -> None:
        """Opens every tracker, once.

        Args:
            derived: Numbers that follow from the configuration.
            metrics: The metrics.jsonl of a run that is continued.
            step: Up to where it is.
        """
        for name, config in self._configs.items():
            if name in self._open:
                continue
            assert self._identity is not None
            try:
                self._open[name] = config.build(self._identity)
            except Exception as error:  # a tracker must not stop an experiment; metrics.jsonl is the record
                log.warning("%s is off for this run: %s", name, _reason(error))
        if derived:
            self._each(lambda tracker: tracker.update_config({"derived": dict(derived)}))
        if metrics is not None and metrics.is_file() and step:
            rows = _rows(metrics, step)
            self._each(lambda tracker: tracker.catch_up(rows))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hands figures to every tracker."""
        self._each(lambda tracker: tracker.log(values, step))

    def log_results(self, results: Mapping[str, Mapping[str, Mapping[str, float]]], folder: Path, step: int) -> None:
        """Every figure as `val/<split>/<benchmark>/<metric>`, and the answers they were made of.

        Args:
            results: {split: {benchmark: {metric: value}}}.
            folder: What holds `predictions/`.
            step: The optimizer step of the weights.
        """
        if figures := figures_of(results):
            self.log(figures, step)
        for split, name in ((split, name) for split, group in results.items() for name in group):
            file = folder / "predictions" / f"{split}_{name}.jsonl"
            if file.is_file():
                self._log_predictions(f"samples/{split}/{name}", file, folder, step)

    def _log_predictions(self, name: str, file: Path, folder: Path, step: int) -> None:
        self._each(lambda tracker: tracker.log_predictions(name, file, folder, step))

    def log_pictures(self, name: str, files: Sequence[Path], step: int) -> None:
        """Hands picture files to every tracker."""
        self._each(lambda tracker: tracker.log_pictures(name, files, step))

    def log_weights(self, folder: Path) -> None:
        """Hands weights to those trackers that were asked to keep them."""
        self._each(lambda tracker: tracker.log_weights(folder))

    def finish(self, code: int) -> None:
        """Ends every tracker, those too that had failed."""
        self._silent.clear()
        self._each(lambda tracker: tracker.finish(code))
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(exit_code(error))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        """One that raises is left alone from then on: metrics.jsonl has all figures."""
        for name, tracker in self._open.items():
            if name in self._silent:
                continue
            try:
                call(tracker)
            except Exception as error:  # a tracker must not stop an experiment
                self._silent.add(name)
                log.warning("%s gets nothing further of this run: %s", name, _reason(error))


def figures_of(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Every figure of {split: {benchmark: {metric: value}}} as `val/<split>/<benchmark>/<metric>`."""
    return {
        f"{VALIDATION}{split}/{name}/{key}": value
        for split, group in results.items()
        for name, metrics in group.items()
        for key, value in metrics.items()
    }


def exit_code(error: BaseException | None) -> int:
    """The exit code of a command that ends with `error`; 0 for none."""
    match error:
        case None:
            return 0
        case Interrupted():
            return 128 + error.signum
        case SystemExit():
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        case KeyboardInterrupt():
            return 130
        case MmexpError():
            return _USER_MISTAKE
        case _:
            return 1


def new_tracking_id(run_id: str) -> str:
    """Readable, of characters that trackers take, and new: stages of one pipeline share their run id."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', run_id)[:_LONGEST_ID]}-{secrets.token_hex(4)}"


def _rows(metrics: Path, step: int) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl up to a step, each step as it was logged last; one cut off by a kill is left out."""
    found: dict[int, dict[str, Any]] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= step:
            found[row["step"]] = found.get(row["step"], {}) | row
    return list(found.values())


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
