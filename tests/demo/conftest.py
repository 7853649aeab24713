"""Two runs on tiny parts that answer differently."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmexp.demo import DemoConfig, Desk, Speaker
from mmexp.engine import Generator, RunDir
from tests.serve.conftest import enlarge, generator, load, pictures, run  # noqa: F401  # fixtures


@pytest.fixture(scope="session")
def other(run: Path) -> Path:  # noqa: F811
    """A run with the same parts and other weights."""
    made = run.with_name("two")
    shutil.copytree(run, made)
    enlarge(RunDir(made), seed=4)
    return made


@pytest.fixture(scope="session")
def second(other: Path) -> Generator:
    """The model of the other run."""
    return load(other)


@pytest.fixture
def desk_of() -> Iterator[Callable[..., Desk]]:
    """Makes desks of models, with the limits that are given; closes them."""
    made: list[Desk] = []

    def make(*generators: Generator, **limits: float) -> Desk:
        limits = DemoConfig(run="none", **limits).limits
        speakers = [Speaker(name, one, limits) for name, one in zip("AB", generators, strict=False)]
        made.append(Desk(speakers, limits))
        return made[-1]

    yield make
    for desk in made:
        desk.close()
        assert not any(speaker.batcher.thread.is_alive() for speaker in desk.speakers)
