"""What `mmexp.inspect` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmexp.config.spine import PathsConfig
from mmexp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What `mmexp.inspect` takes."""

    run: str
    """A run directory."""
    n: int = 4
    """Samples, evenly spaced, where neither `ids` nor `image` says which."""
    ids: tuple[str | int, ...] = ()
    """Ids of the samples."""
    image: str | None = None
    """A picture of your own, with `prompt`."""
    prompt: str | None = None
    """What is asked about `image`."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """Benchmark the samples come from; none given takes the run's first one, or its training data."""
    split: str | None = None
    """Split of the benchmark; null takes its first one."""
    layers: tuple[int, ...] | None = None
    """LLM layers, from 0, whose heads are shown one by one; null takes as many as the page has room for."""
    max_new_tokens: int = 32
    """Longest answer."""
    words: int = 5
    """Nearest words of each soft token."""
    lens_layers: int = 8
    """Layers whose hidden states become words, evenly spaced."""
    out: str | tuple[str, ...] = ()
    """A page (.html) and a folder for PNG files, either or both; none given writes inspect.html in the run."""
    world_seed: int = 0
    """Which shapes world, where `evaluation=` names its benchmarks."""
    paths: PathsConfig = field(default_factory=PathsConfig)
    """Folders of the benchmark given here."""

    def __post_init__(self) -> None:
        """Raises ConfigError for half of a question, two sources of samples, and numbers out of range."""
        if (self.image is None) != (self.prompt is None):
            given, other = ("image", "prompt") if self.prompt is None else ("prompt", "image")
            raise ConfigError(f"{given}= without {other}=", expected="both", where=other,
                              fix="image=photo.jpg prompt='What is this?'")  # fmt: skip
        if self.image is not None and self.ids:
            raise ConfigError("both image= and ids= are given", expected="one of them", where="ids")
        for name in ("n", "max_new_tokens", "words", "lens_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)}", expected="at least 1", where=name)
        wrong = [name for name in self.files if Path(name).suffix.lower() not in ("", ".html")]
        if wrong or len(self.pages) > 1 or len(self.folders) > 1:
            raise ConfigError(", ".join(wrong or self.files), expected="one .html file, one folder, or both",
                              where="out", fix="out=[inside.html,pictures]")  # fmt: skip

    @property
    def files(self) -> tuple[str, ...]:
        """`out`, one or many."""
        return (self.out,) if isinstance(self.out, str) else self.out

    @property
    def pages(self) -> list[Path]:
        """Those of `out` that are pages."""
        return [Path(name).expanduser() for name in self.files if Path(name).suffix]

    @property
    def folders(self) -> list[Path]:
        """Those of `out` that are folders for PNG files."""
        return [Path(name).expanduser() for name in self.files if not Path(name).suffix]
