"""What every run imports, imported once: each run is then a fork of a process that has done nothing else."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import lightning.pytorch
import torch
import transformers.models.llama.modeling_llama

import mmexp.assemble
import mmexp.data
import mmexp.engine
import mmexp.engine.fitting
import mmexp.engine.predict
import mmexp.report
import mmexp.train

LOADED = (lightning.pytorch, torch, transformers, mmexp)


def train(line: list[str], folder: Path, out: Path, env: dict[str, str], file_limit: int | None) -> None:
    """`python -m mmexp.train` in a process group of its own, with its output in a file."""
    os.setsid()
    with out.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.chdir(folder)
    os.environ |= env
    sys.argv = ["mmexp.train", *line]
    if file_limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.modules.pop("mmexp.train", None)
    runpy.run_module("mmexp.train", run_name="__main__", alter_sys=True)
