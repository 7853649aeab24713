"""A finished run as a transformers folder: `python -m mmexp.export run=outputs/llava15/... out=exported`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmexp.config import Invocation, launch

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmexp.assemble import Experiment
    from mmexp.contracts import Turn
    from mmexp.engine import RunDir

_QUESTION = "What is in the picture?"
_TEXTS = ("a drawn picture", "two cats lie on a sofa", "stripes and squares", "what somebody sees here")
"""For models that compare pictures with texts."""
_NUM_ROWS = 2


def body(invocation: Invocation) -> None:
    """Checks what can be held before reading weights; writes, compares, and only then puts the folder in its place."""
    from mmexp.assemble import experiment_of_run, finished_run
    from mmexp.config import check_own
    from mmexp.config.commands import ExportConfig
    from mmexp.engine import console, setup_logging

    cfg = check_own(ExportConfig, invocation.cfg)
    setup_logging()
    run = finished_run(cfg.run, "run")
    exp = experiment_of_run(cfg.run, invocation.registered, skip=("optim", "trainer", "logger", "evaluation"))
    out = Path(cfg.out).expanduser()
    if cfg.form == "adapter":
        from mmexp.hf import export_adapter

        for file in export_adapter(exp.plan, run.path, run.manifest(), out):
            console.print(f"wrote  {file}", soft_wrap=True)
        return
    console.print(_merged(exp, run, out, cfg.image), soft_wrap=True)


def _merged(exp: Experiment, run: RunDir, out: Path, image: str | None) -> str:
    from mmexp.hf import Export

    heads = exp.build_heads()
    export = Export(exp.plan, out, heads)
    export.check()
    asked = _conversations(exp, image)
    model = exp.load_model(run, {} if heads is None else {"objective": heads.eval()})
    agreement = export.write(model, asked, lineage(run))
    return f"wrote  {out}\nread back by transformers on {agreement.summary()}"


def lineage(run: RunDir) -> list[dict[str, Any]]:
    """Manifests of a run and of those it started from, the newest first; a run that is gone ends the list."""
    from mmexp.engine import RunDir

    found = [run.manifest()]
    while isinstance(found[-1].get("parent"), str):
        before = RunDir(Path(found[-1]["parent"])).manifest()
        if not before or before in found:
            break
        found.append(before)
    return found


def _conversations(exp: Experiment, image: str | None) -> list[tuple[Turn, ...]]:
    """Probes: drawn pictures of three shapes, the user's own, and first rows of the run's data where it is here.

    They end with a question; without an LLM, with the text that goes with the picture.
    """
    from mmexp.contracts import Medium, Text, Turn
    from mmexp.prompt import load_image

    pictures: list[Any] = [_drawn(size) for size in ((160, 96), (96, 160), (128, 128))]
    if image is not None:
        load_image(str(Path(image).expanduser()), f"image={image}")
        pictures.append(str(Path(image).expanduser().resolve()))
    parts = [(Medium(source=picture), Text(text="\n"), Text(text=_QUESTION)) for picture in pictures]
    asked = [(Turn(role="user", parts=content),) for content in parts]
    if not exp.plan.spec.width:
        said = [Turn(role="assistant", parts=(Text(text=text),)) for text in _TEXTS]
        asked = [(*turns, answer) for turns, answer in zip(asked, said, strict=False)]
    return asked + _rows(exp, "user" if exp.plan.spec.width else "assistant")


def _rows(exp: Experiment, last: str) -> list[tuple[Turn, ...]]:
    """The first exchanges of rows with one picture, up to the turn of the role `last`."""
    from mmexp.errors import MmexpError

    data: Any = exp.checked.parts["data"]
    path = getattr(data, "path", None)
    if path is None or not Path(path).is_file():
        return []
    try:
        dataset = data.build()
        rows = [dataset[index] for index in range(min(16, len(dataset)))]
    except MmexpError:
        return []
    found = []
    for sample in rows:
        first = sample.turns[: 1 if last == "user" else 2]
        asked = tuple(turn for turn in sample.turns if turn.role == "system") + first
        if sum(len(turn.media) for turn in asked) == 1 and asked[-1].role == last:
            found.append(asked)
    return found[:_NUM_ROWS]


def _drawn(size: tuple[int, int]) -> Image:
    """A picture with edges, a gradient and noise, always the same."""
    import numpy as np
    from PIL import Image

    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(width).integers(0, 40, (height, width, 3))
    channels = [columns * 200 // width, rows * 200 // height, 200 * ((rows // 16 + columns // 16) % 2)]
    return Image.fromarray((np.stack(channels, -1) + noise).astype(np.uint8))


if __name__ == "__main__":
    launch(body, config_name="export", module="mmexp.export")
