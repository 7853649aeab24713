"""What a run, or every stage of a recipe, needs from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmexp.assemble import Experiment
from mmexp.config import DataFetchConfig, Invocation, check, compose, own_keys
from mmexp.data import MixtureConfig
from mmexp.data.fetch import Need
from mmexp.hub import is_local, is_weights_file

_PLACES = ("path", "image_root", "annotations", "instances")
"""Settings of a dataset that name a file or folder."""
_BYTES_OF_A_WEIGHT = 2
"""Published checkpoints of this size are stored in 16 bit."""


def needs_of(invocation: Invocation) -> list[Need]:
    """Checkpoints and files of all stages of the recipe, or of the one run, each once."""
    stages = list(invocation.cfg.stages) or [None]
    own = own_keys(DataFetchConfig)
    found: dict[tuple[Any, ...], Need] = {}
    for stage in stages:
        overrides = [text for text in invocation.overrides if text.split("=")[0].lstrip("+~") not in ("stage", *own)]
        overrides += [f"stage={stage}"] if stage else []
        composed = compose("train", overrides, invocation.config_dir) if stage else invocation
        skip = ("evaluation", "optim", "trainer", "logger", "objective", *(own if not stage else ()))
        for need in _needs(Experiment(check(composed.cfg, composed.registered, skip))):
            found.setdefault((need.what, need.source, need.file), need)
    return list(found.values())


def _needs(exp: Experiment) -> Iterator[Need]:
    models = exp.checked.spine.paths.models
    sizes = _parameter_bytes(exp)
    tokenizers = (("llm", "tokenizer"), ("connector", "tokenizer"))
    for name, key in (("encoder", "path"), ("llm", "path"), ("connector", "init"), *tokenizers):
        path = getattr(exp.checked.parts[name], key, None)
        if path and is_weights_file(path):
            yield Need(what=name, source=None, file=Path(models or ".").expanduser() / path)
        elif path and not is_local(path):
            folder = Path(models).expanduser() / path if models else None
            file = folder / "config.json" if folder else None
            yield Need(
                what=name,
                source=path,
                folder=folder,
                file=file,
                estimate_bytes=sizes.get(name) if key != "tokenizer" else None,
            )
    data = exp.checked.parts["data"]
    is_mixture = isinstance(data, MixtureConfig)
    parts = (
        {f"data.parts.{name}.data": part.data for name, part in data.parts.items()} if is_mixture else {"data": data}
    )
    for where, one in parts.items():
        yield from _files(where, one, exp.checked.spine.stage.name)


def _files(where: str, data: Any, stage: str) -> Iterator[Need]:
    """What one dataset reads; `where` is its config path."""
    if getattr(data, "prepare", None) is not None:
        return  # makes its own files
    arriving = []
    for key, source in getattr(data, "published", {}).items():
        is_setting = hasattr(data, key)
        if place := source.place or getattr(data, key, None):
            file = Path(place).expanduser()
            arriving.append(file)
            what = f"{where}.{key} ({stage})" if is_setting else f"{where}.published.{key} ({stage})"
            yield Need(what=what, source=source.hub, repo_type="dataset", folder=file.parent, file=file,
                       files=source.files, page=source.page, estimate_bytes=source.num_bytes)  # fmt: skip
    for key in _PLACES:
        if place := getattr(data, key, None):
            file = Path(place).expanduser()
            if not any(file.is_relative_to(known) or known.is_relative_to(file) for known in arriving):
                yield Need(what=f"{where}.{key} ({stage})", source=None, repo_type="dataset", file=file)


def _parameter_bytes(exp: Experiment) -> dict[str, int]:
    model = exp.plan.empty()
    return {
        name: sum(parameter.numel() for parameter in module.parameters()) * _BYTES_OF_A_WEIGHT
        for name, module in model.parts().items()
    }
