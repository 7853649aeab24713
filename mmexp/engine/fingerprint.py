"""By what features of an encoder are known again: everything that decides them, besides the picture."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from mmexp.errors import ConfigError
from mmexp.prompt import image, transparency

if TYPE_CHECKING:
    from torch import Tensor, nn

_FORMAT = 1
"""Raised when the meaning of what is kept changes."""
_VERSIONS = ("torch", "transformers", "pillow")
_PLACES = ("path", "revision", "ln_vision_path")
"""Fields of an encoder's config that say where weights lie, not what they are."""
_INSTALLED = ("torch", "transformers", "builtins")
"""Import names whose code changes only with a version that is one of the facts."""
_TRIES = 12
"""A flip of every second picture stays unseen in one of 2,048 cases."""
_WHERE = "processor.feature_cache"
_FIX = f"{_WHERE}=none"


def describe_features(module: nn.Module, config: Any, transform: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the features of a picture, as plain values.

    Args:
        module: The encoder, or its trunk, with the weights that it runs with.
        config: The encoder's config.
        transform: Of its pictures.
        settings: What else decides: how pictures are decoded, precision, kind of device.

    Raises:
        ConfigError: the config or the transform does not say all that it does.
    """
    return {
        "format": _FORMAT,
        "weights": _weights(module),
        "layers": hashlib.sha256(repr(module).encode()).hexdigest(),
        "architecture": _architecture(module),
        "encoder": plain(config, leave_out=_PLACES),
        "transform": plain(transform),
        "code": _code({*map(type, module.modules()), *_classes(config), *_classes(transform)}),
        "versions": {name: metadata.version(name) for name in _VERSIONS},
        **settings,
    }


def name_of(facts: Mapping[str, Any]) -> str:
    """32 hex digits for what `describe_features` found."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def require_repeatable(transform: Callable[[Any], Tensor]) -> None:
    """Raises ConfigError for a transform that does not do the same to a picture every time (an augmentation), or that
    does not say all that it does."""
    plain(transform)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    numbers = random.getstate(), np.random.get_state()  # the generators that a transform may use
    try:
        with torch.random.fork_rng(devices=[]):
            first, *others = (transform(picture.copy()) for _ in range(_TRIES))
    finally:
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
    if any(not torch.equal(first, other) for other in others):
        raise ConfigError(
            f"{type(transform).__name__} makes something else of a picture each time, but {_WHERE}=read_write",
            expected="no augmentation: what was kept in one epoch would be used in all others",
            where="encoder (its transform)",
            fix=f"{_FIX}, or a transform without chance",
        )


def plain(value: Any, leave_out: tuple[str, ...] = ()) -> Any:
    """Dataclasses and containers as values that JSON has.

    Raises:
        ConfigError: something in it is neither these nor a plain value, so nobody can tell whether two are the same.
    """
    if is_dataclass(value) and not isinstance(value, type):
        held = {each.name: plain(getattr(value, each.name)) for each in fields(value) if each.name not in leave_out}
        return {"class": type(value).__qualname__, **held}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ConfigError(
        f"{type(value).__name__} in the encoder's config or transform",
        expected="dataclasses of plain values, by which features that were kept are known again",
        where=_WHERE,
        fix=_FIX,
    )


def _weights(module: nn.Module) -> str:
    """Names, shapes and all bytes."""
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _architecture(module: nn.Module) -> dict[str, Any]:
    """What a model of transformers knows of itself and `repr` does not show, such as its number of heads."""
    for each in module.modules():
        config = getattr(each, "config", None)
        if hasattr(config, "to_json_string"):
            found = json.loads(config.to_json_string(use_diff=False))  # type: ignore[union-attr]
            return {key: value for key, value in found.items() if not key.startswith("_") and "version" not in key}
    return {}


def _classes(value: Any) -> set[type]:
    """The classes of dataclasses in each other."""
    if not is_dataclass(value) or isinstance(value, type):
        return set()
    inner = (_classes(getattr(value, each.name)) for each in fields(value))
    return {type(value)}.union(*inner)


def _code(classes: set[type]) -> str:
    """A hash of the files that these classes, and the reading of pictures, are written in."""
    files = {inspect.getsourcefile(cls) for cls in classes if cls.__module__.split(".")[0] not in _INSTALLED}
    files |= {image.__file__, transparency.__file__}
    contents = sorted(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file)
    return hashlib.sha256("".join(contents).encode()).hexdigest()
