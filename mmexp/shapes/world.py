"""Renders the world to a folder: ordinary LLaVA JSON and PNG files, once."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmexp.errors import ConfigError, DataError
from mmexp.shapes.corpora import pair_row
from mmexp.shapes.render import draw_image
from mmexp.shapes.rows import (
    SHARES,
    Row,
    align_row,
    caption_rows,
    chinese_row,
    grounding_rows,
    image_path,
    instruct_row,
    retrieval_rows,
    short_row,
    task_places,
    task_row,
    vqa_rows,
)
from mmexp.shapes.scenes import COMBOS, PRETRAIN, Scene, draw_scene

STAMP = "world.json"
"""Says what a folder was rendered from. A folder without it was not rendered by us, or not completely."""

IMAGES = "heldout_images"
"""The split of new pictures of known pairs."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """A rendered world. `prepare` makes it exist; a second call finds it there and returns at once."""

    root: str
    """Folder to render into; it belongs to the world and is replaced when the settings change."""
    seed: int = 0
    """Another seed is another world of the same kind."""
    aspect: float = 1.0
    """Width of the pictures in heights, 0.5 to 3."""
    align_rows: int = 8000
    """Pictures with captions, for the alignment stage."""
    instruct_rows: int = 12000
    """Conversations, for the instruction stage, each about a picture of its own."""
    vqa_per_type: int = 70
    """Questions of each type on held-out pictures; half as many on held-out combinations."""
    caption_rows: int = 120
    """Captions on held-out pictures; half as many on held-out combinations."""
    grounding_rows: int = 200
    """Boxes on held-out pictures; half as many on held-out combinations."""
    retrieval_rows: int = 100
    """Held-out pictures with captions that all differ; half as many held-out combinations."""
    pretrain_pair_rows: int = 0
    """Rows of `pretrain_pairs.json`, what the vision part learnt from; 0 writes no such file."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a shape of pictures on which things find no place."""
        if not 0.5 <= self.aspect <= 3:
            raise ConfigError(f"{self.aspect}", expected="0.5 to 3", where="aspect")

    def prepare(self) -> None:
        """Renders the world unless it is there. What is half done lies in a folder of its own and never counts.

        Raises:
            DataError: `root` holds something else, cannot be written, or the disk is full.
        """
        root = Path(self.root)
        wanted = self._stamp()
        if _read_stamp(root) == wanted:
            return
        if root.exists() and not (root / STAMP).exists() and (not root.is_dir() or any(root.iterdir())):
            raise DataError(
                "the folder holds files that are not a rendered world",
                expected=f"an empty folder, or one with {STAMP}",
                where=str(root),
                fix="choose another folder with paths.shapes=...",
            )
        try:
            self._render_and_move(root, wanted)
        except OSError as error:
            raise _disk_error(error, root) from error

    def _render_and_move(self, root: Path, stamp: dict[str, Any]) -> None:
        root.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            fresh.chmod(0o755)
            self._render(fresh)
            (fresh / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="ascii")
            if _read_stamp(root) != stamp:  # another process may have finished the same world meanwhile
                _replace(root, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _render(self, folder: Path) -> None:
        files = self._files()
        with _Bar(sum(count for count, _ in files.values())) as step:
            for name, (_, rows) in files.items():
                written: list[Row] = []
                for row in rows():
                    if "image" in row:
                        self._draw(folder, row["image"])
                    written.append(row)
                    step()
                with (folder / f"{name}.json").open("w", encoding="ascii") as file:
                    file.write("[\n" + ",\n".join(json.dumps(row) for row in written) + "\n]\n")

    def _draw(self, folder: Path, image: str) -> None:
        """Draws a picture that a row names, unless another row did."""
        target = folder / image
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            scene = self._scene(target.parent.name, int(target.stem))
            assert image_path(scene) == image
            draw_image(scene).save(target, compress_level=1)

    def _scene(self, split: str, index: int) -> Scene:
        return draw_scene(self.seed, split, index, self.aspect)

    def _files(self) -> dict[str, tuple[int, Callable[[], Iterator[Row]]]]:
        """Per file the number of its rows and a function that makes them."""
        draw = self._scene

        def simple(make: Callable[..., Row], split: str, places: range) -> tuple[int, Callable[[], Iterator[Row]]]:
            return len(places), lambda: (make(draw(split, index)) for index in places)

        files = {
            "captions": simple(short_row, "train", range(self.align_rows)),
            "align": simple(align_row, "train", range(self.align_rows)),
            "align_zh": simple(chinese_row, "train", range(self.align_rows)),
            "instruct": simple(instruct_row, "train", range(self.instruct_rows)),
        }
        for task in SHARES:
            make = partial(task_row, task=task)
            files[f"task_{task}"] = simple(make, "train", task_places(task, self.instruct_rows))
        for split, share in ((IMAGES, 1), (COMBOS, 2)):
            counts = (self.vqa_per_type, self.caption_rows, self.grounding_rows, self.retrieval_rows)
            vqa, captions, boxes, pairs = (max(count // share, 1) for count in counts)
            files[f"{split}_vqa"] = 7 * vqa, lambda split=split, n=vqa: vqa_rows(draw, split, n)
            files[f"{split}_caption"] = captions, lambda split=split, n=captions: caption_rows(draw, split, n)
            files[f"{split}_grounding"] = boxes, lambda split=split, n=boxes: grounding_rows(draw, split, n)
            files[f"{split}_retrieval"] = pairs, lambda split=split, n=pairs: retrieval_rows(draw, split, n)
        if self.pretrain_pair_rows:
            files["pretrain_pairs"] = simple(pair_row, PRETRAIN, range(self.pretrain_pair_rows))
        return files

    def _stamp(self) -> dict[str, Any]:
        """Everything that decides what is rendered: the settings and the code."""
        code = hashlib.sha256()
        for file in sorted(Path(__file__).parent.glob("*.py")):
            code.update(file.read_bytes())
        settings = {name: value for name, value in asdict(self).items() if name != "root"}
        return {"settings": settings, "code": code.hexdigest()[:16]}


def _read_stamp(root: Path) -> dict[str, Any] | None:
    try:
        return json.loads((root / STAMP).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _replace(root: Path, fresh: Path) -> None:
    """Puts `fresh` in the place of `root`; at no time is there a mixture of both."""
    old = fresh.with_name(fresh.name + "-old")
    if root.exists():
        root.rename(old)
    fresh.rename(root)
    shutil.rmtree(old, ignore_errors=True)


def _disk_error(error: OSError, root: Path) -> DataError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DataError(
        "the disk is full while the shapes world is rendered" if full else f"cannot write here: {error.strerror}",
        expected="about 50 MB of free space" if full else "a folder that may be written",
        where=str(root),
        fix="free some space, or choose another disk with paths.shapes=..." if full else "choose paths.shapes=...",
    )


class _Bar:
    """A progress bar on stderr with the time left; nothing where there is no terminal."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __enter__(self) -> Callable[[], None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("rendering the shapes world"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not sys.stderr.isatty())
        self._progress.start()
        task = self._progress.add_task("", total=self.total)
        return lambda: self._progress.advance(task)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
