"""A small model, sized and real."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from mmexp.connector import MlpConfig
from mmexp.data import LlavaJsonConfig
from mmexp.encoder import TinyVisionConfig
from mmexp.engine.blocks import set_up_blocks
from mmexp.llm import TinyLlmConfig
from mmexp.model import InputPlan, MultimodalModel, Plan
from mmexp.objective import NextTokenConfig
from mmexp.prompt import ChatTemplate
from mmexp.sizing import Setup, Size, Trace, Workload, size_stage, trace_stage
from mmexp.tuning import LoraSettings, apply_policy

INSTRUCT = {"encoder": "frozen", "connector": "full", "llm": "full"}
LORA = LoraSettings(rank=2, alpha=4)


@dataclass(frozen=True)
class Small:
    """A plan with one policy applied."""

    plan: Plan
    policy: dict[str, Any] = field(default_factory=lambda: INSTRUCT)

    def model(self, real: bool = False) -> MultimodalModel:
        model = self.plan.build() if real else self.plan.empty()
        apply_policy(model, self.policy, LORA)
        return model

    @property
    def objective(self) -> nn.Module:
        with torch.device("meta"):
            return NextTokenConfig().build(self.plan)

    def size(self, workload: Workload | None = None, **setup: Any) -> tuple[Size, Trace]:
        settings = Setup(**{"batch_size": 2, "micro_batch_size": 2, **setup})
        model, objective = self.model(), self.objective
        set_up_blocks(model.parts(), settings.recompute, ())
        trace, tokens = trace_stage(self.plan, model, objective, settings, workload or work())
        return size_stage(model, objective, settings, trace, tokens), trace


def work(tokens: float = 40, **changes: Any) -> Workload:
    fields = {"num_rows": 100, "tokens": tokens, "long_tokens": tokens, "supervised": 20, "media": 1, "source": "here"}
    return Workload(**{**fields, **changes})


@pytest.fixture
def make_small() -> Callable[..., Small]:
    def make(policy: dict[str, Any] = INSTRUCT, **plan: Any) -> Small:
        parts = {"inputs": {"image": InputPlan(encoder=TinyVisionConfig(), connector=MlpConfig())},
                 "llm": TinyLlmConfig(), "template": ChatTemplate(name="short", media="first_if_single"),
                 "max_length_tokens": 512}  # fmt: skip
        return Small(Plan(**{**parts, **plan}), policy)

    return make


@pytest.fixture
def rows(tmp_path: Path) -> LlavaJsonConfig:
    """Eight rows, the last of them without a picture."""
    Image.new("RGB", (30, 30), (90, 10, 10)).save(tmp_path / "0.png")
    records = []
    for index in range(8):
        question = "<image>\nWhat?" if index < 7 else "Hello?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "yes " * (index + 1)}]
        records.append({"id": str(index), "conversations": turns} | ({"image": "0.png"} if index < 7 else {}))
    (tmp_path / "rows.json").write_text(json.dumps(records))
    return LlavaJsonConfig(path=str(tmp_path / "rows.json"))
