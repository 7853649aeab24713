"""What a sweep shows: a live table on a terminal, elsewhere one line for each event."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mmexp.sweep.plan import Step
from mmexp.sweep.progress import pace
from mmexp.sweep.record import Job, SweepRecord

_EVERY_S = 0.5
_STYLES = {"queued": "dim", "running": "cyan", "finished": "green", "failed": "bold red", "interrupted": "yellow"}
_AROUND = 6
"""Lines of a terminal that are not for jobs."""


class View:
    """Shows jobs while they run.

    Args:
        record: The sweep.
        console: Where to.
    """

    def __init__(self, record: SweepRecord, console: Console) -> None:
        self.record, self.console = record, console
        self._live: Live | None = None
        self._shown = 0.0
        self._progress: dict[int, str] = {}

    def __enter__(self) -> View:
        if self.console.is_terminal:
            self._live = Live(self._table(), console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.end()

    def end(self) -> None:
        """The table as it stands, whole; what is said from now on comes below it. Again is harmless."""
        if self._live is not None:
            self._live.update(self._table(whole=True), refresh=True)
            self._live.stop()
            self._live = None

    def event(self, job: Job, note: str = "") -> None:
        """A job has another status."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        varied = " ".join(_varied(job, self.record.jobs))
        self.say("  ".join(word for word in (f"job {job.number} {job.status}", note, varied, told(job)) if word))

    def refresh(self, running: Sequence[tuple[Job, Step]]) -> None:
        """Looks how far the running ones are, on a terminal, now and then."""
        if self._live is None or time.monotonic() - self._shown < _EVERY_S:
            return
        self._shown = time.monotonic()
        self._progress = {job.number: _progress(job, step) for job, step in running}
        self._live.update(self._table(), refresh=True)

    def say(self, text: str) -> None:
        """A line."""
        self.console.print(Text(text), soft_wrap=True)

    def _table(self, *, whole: bool = False) -> Table:
        jobs = self.record.jobs
        done = sum(job.status == "finished" for job in jobs)
        table = Table(title=f"{self.record.name}: {done} of {len(jobs)} jobs finished", title_justify="left")
        for name in ("job", "overrides", "status", "progress or result", "s"):
            table.add_column(name, justify="right" if name in ("job", "s") else "left", overflow="fold")
        shown = jobs if whole else _most_telling(jobs, max(3, self.console.height - _AROUND))
        for job in shown:
            status = Text(job.status, style=_STYLES[job.status])
            told_now = self._progress.get(job.number, "") if job.status == "running" else told(job)
            wall = f"{job.wall_s:.0f}" if job.wall_s is not None else ""
            table.add_row(str(job.number), Text(" ".join(_varied(job, jobs))), status, Text(told_now), wall)
        if len(shown) < len(jobs):
            table.caption = f"{len(jobs) - len(shown)} more"
        return table


def told(job: Job) -> str:
    """Result or reason of a job in a few words."""
    if job.status in ("failed", "interrupted"):
        return job.reason or ""
    return "  ".join(f"{name} {value:.4g}" for name, value in list(job.metrics.items())[:2])


def _progress(job: Job, step: Step) -> str:
    stage = f"{step.stage} " if job.stages else ""
    if (now := pace(step.run)) is None:
        return f"{stage}starting"
    total = f"/{now.num_steps}" if now.num_steps else ""
    loss = f"  loss {now.loss:.4g}" if now.loss is not None else ""
    return f"{stage}step {now.step}{total}{loss}"


def _varied(job: Job, jobs: Sequence[Job]) -> list[str]:
    """The overrides that not all jobs have; all of them where there is one job."""
    common = set.intersection(*(set(other.overrides) for other in jobs)) if len(jobs) > 1 else set[str]()
    return [text for text in job.overrides if text not in common]


def _most_telling(jobs: Sequence[Job], room: int) -> list[Job]:
    """Those that run or failed first, then what comes next, in their order."""
    order = {"running": 0, "failed": 1, "interrupted": 1, "queued": 2, "finished": 3}
    chosen = sorted(jobs, key=lambda job: (order[job.status], job.number))[:room]
    return sorted(chosen, key=lambda job: job.number)
