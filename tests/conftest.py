"""What every test shares: few threads, no network, no tracker, one table of differences."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

from tests.differences import Differences

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
_DIFFERENCES = pytest.StashKey[Differences]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_DIFFERENCES] = Differences()


@pytest.fixture
def differences(request: pytest.FixtureRequest) -> Differences:
    """Compares with a reference, and keeps the largest difference for the table at the end."""
    return request.config.stash[_DIFFERENCES]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes hands its part of the table on."""
    handed_on = getattr(session.config, "workeroutput", None)
    if handed_on is not None:
        handed_on["differences"] = session.config.stash[_DIFFERENCES].plain()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    node.config.stash[_DIFFERENCES].add(getattr(node, "workeroutput", {}).get("differences", ()))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    kept = config.stash[_DIFFERENCES]
    if kept.rows:
        terminalreporter.section("largest absolute differences from the references")
        for line in kept.table():
            terminalreporter.write_line(line)
