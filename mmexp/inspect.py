"""Looks inside a finished run: `python -m mmexp.inspect run=outputs/llava15/... [n=4] [image=photo.jpg prompt=...]`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmexp.config import InspectConfig, Invocation, check_own, instantiate, launch
from mmexp.whole import write_text


def body(invocation: Invocation) -> None:
    """Answers a few samples, and writes what the model did inside as a page, as pictures, or both."""
    from mmexp.assemble import experiment_of_run, finished_run
    from mmexp.engine import console, setup_logging
    from mmexp.inspection import choose, look_inside, own_sample, page_html, require_visible, rows, write_pictures

    cfg = check_own(InspectConfig, invocation.cfg)
    setup_logging()
    run = finished_run(cfg.run, "run")
    exp = experiment_of_run(cfg.run, invocation.registered, skip=("optim", "trainer", "logger"))
    require_visible(exp.plan)
    if cfg.image is not None and cfg.prompt is not None:
        source, samples = "a picture of your own", [own_sample(cfg.image, cfg.prompt)]
    else:
        chosen = instantiate(cfg.evaluation, "evaluation", invocation.registered) if cfg.evaluation else exp.benchmarks
        source, dataset = rows(chosen, exp.checked.parts["data"], cfg.split)
        samples = choose(dataset, cfg.n, cfg.ids, source)
    generator = exp.load_generator(run)
    limits = {"max_new_tokens": cfg.max_new_tokens, "num_words": cfg.words, "num_lens_layers": cfg.lens_layers}
    found = [look_inside(generator.model, generator.plan, sample, **limits) for sample in samples]
    for page in cfg.pages or ([] if cfg.folders else [run.path / "inspect.html"]):
        with _writing(page):
            title = " / ".join((exp.checked.spine.name, exp.checked.spine.stage.name, run.path.name))
            write_text(page, page_html(found, title, source, cfg.layers))
        console.print(f"page      {page}", markup=False, soft_wrap=True)
    for folder in cfg.folders:
        with _writing(folder):
            count = sum(len(write_pictures(each, folder)) for each in found)
        console.print(f"pictures  {folder} ({count} files)", markup=False, soft_wrap=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a place that cannot be written into one clear error."""
    from mmexp.errors import DataError

    try:
        yield
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=str(path), fix="out=<another place>") from error


if __name__ == "__main__":
    launch(body, config_name="inspect", module="mmexp.inspect")
