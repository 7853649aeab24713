"""A small stage on the tiny parts, and pictures to train it on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmexp.connector import MlpConfig
from mmexp.data import LlavaJsonConfig
from mmexp.encoder import TinyVisionConfig
from mmexp.engine import AdamWCosineConfig, Interrupted, RunDir, StageJob, TrainerConfig, TrainingModule
from mmexp.llm import TinyLlmConfig
from mmexp.model import InputPlan, Plan
from mmexp.objective import NextTokenConfig
from mmexp.prompt import ChatTemplate
from mmexp.tuning import LoraSettings

StoppedAt = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def float64() -> Iterator[None]:
    """The test's modules and batches are made in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def stopped_at(monkeypatch: pytest.MonkeyPatch) -> StoppedAt:
    """A context in which a run gets a SIGTERM before a step, and has to stop as one that saved everything."""

    @contextmanager
    def stopping(step: int) -> Iterator[None]:
        plain = TrainingModule.training_step

        def interrupted(self: Any, batch: Any, index: int) -> Any:
            if self.trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self, batch, index)

        with monkeypatch.context() as patched, pytest.raises(Interrupted):
            patched.setattr(TrainingModule, "training_step", interrupted)
            yield

    return stopping


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 rows: pictures, text only, two pictures; answers of different length."""
    folder = tmp_path_factory.mktemp("rows")
    records: list[dict[str, Any]] = []
    for index in range(21):
        for suffix in ("", "b"):
            Image.new("RGB", (30 + index, 30), (index * 12, 200 - index * 6, 90)).save(folder / f"{index}{suffix}.png")
        images: Any = [f"{index}.png", f"{index}b.png"] if index % 7 == 3 else f"{index}.png"
        question = "<image>\n<image>\nSame?" if index % 7 == 3 else "<image>\nWhat?"
        record = {
            "id": f"r{index}",
            "image": images,
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "yes " * (1 + index % 4)}],
        }
        if index % 5 == 4:
            del record["image"]
            record["conversations"][0]["value"] = "Hello?"
        records.append(record)
    (folder / "rows.json").write_text(json.dumps(records))
    return folder / "rows.json"


@pytest.fixture
def make_job(rows: Path, tmp_path: Path) -> Callable[..., StageJob]:
    """A stage of 6 steps on tiny parts; keyword arguments change it."""

    def make(name: str = "run", max_steps: int = 6, **changes: Any) -> StageJob:
        run = RunDir(tmp_path / name)
        for folder in (run.checkpoints, run.weights):
            folder.mkdir(parents=True, exist_ok=True)
        plan = Plan(
            inputs={"image": InputPlan(encoder=TinyVisionConfig(), connector=MlpConfig())},
            llm=TinyLlmConfig(),
            template=ChatTemplate(name="short", media="first_if_single"),
            max_length_tokens=512,
        )
        settings: dict[str, Any] = {
            "run": run,
            "label": name,
            "plan": plan,
            "data": LlavaJsonConfig(path=str(rows)),
            "objective": NextTokenConfig(),
            "policy": {"encoder": "frozen", "connector": "full", "llm": "full"},
            "init_from": (),
            "lora": LoraSettings(rank=2, alpha=4),
            "lr": 1e-2,
            "lr_by_part": {},
            "weight_decay": 0.0,
            "warmup_ratio": 0.2,
            "grad_clip": 1.0,
            "batch_size": 4,
            "micro_batch_size": 2,
            "epochs": 1.0,
            "max_steps": max_steps,
            "optim": AdamWCosineConfig(),
            "trainer": TrainerConfig(accelerator="cpu", log_every_n_steps=1, checkpoint_every_n_steps=2),
            "row": "flat",
            "num_workers": 0,
            "seed": 0,
            "check_rows": 100,
        }
        return StageJob(**{**settings, **changes})

    return make
