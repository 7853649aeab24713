"""Tiny models to look into."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image, ImageDraw

from mmexp.connector import MlpConfig, PerceiverConfig, QformerConfig, ResamplerConfig
from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.encoder import TinyVisionConfig
from mmexp.inspection import Inside, look_inside
from mmexp.llm import TinyLlmConfig
from mmexp.model import InputPlan, MultimodalModel, Plan
from mmexp.prompt import ChatTemplate

ENCODER = TinyVisionConfig(image_size_px=56)
"""4 x 4 patches."""
CONNECTORS: dict[str, Any] = {
    "linear": MlpConfig(depth=1),
    "qformer": QformerConfig(num_queries=4, width=16, num_layers=4, num_heads=2, ffn_width=32),
    "perceiver": PerceiverConfig(num_latents=3, depth=2, num_heads=2, head_width=8),
    "resampler": ResamplerConfig(num_queries=4, width=16, num_heads=2),
}


def make_plan(connector: Any = CONNECTORS["linear"], **changes: Any) -> Plan:
    node = yaml.safe_load((Path(__file__).parents[2] / "conf/template/vicuna_v1.yaml").read_text(encoding="utf-8"))
    node.pop("_target_")
    inputs = {"image": InputPlan(encoder=ENCODER, connector=connector)}
    return Plan(**{"inputs": inputs, "llm": TinyLlmConfig(), "template": ChatTemplate(**node)} | changes)


def make_model(plan: Plan) -> MultimodalModel:
    torch.manual_seed(0)
    return plan.build().eval()


def dotted(size: tuple[int, int], dot: tuple[float, float]) -> Image.Image:
    """A black picture with a white dot, whose middle is given in shares."""
    picture = Image.new("RGB", size)
    x, y, radius = dot[0] * size[0], dot[1] * size[1], min(size) / 12
    ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill="white")
    return picture


def make_sample(picture: Image.Image, text: str = "\nWhat?", answer: str | None = "A dot.") -> Sample:
    turns = (Turn(role="user", parts=(Medium(source=picture), Text(text=text))),)
    turns += (Turn(role="assistant", parts=(Text(text=answer),)),) if answer is not None else ()
    return Sample(id="one", turns=turns)


@cache
def looked(name: str, fit: str = "pad") -> Inside:
    """A sample of a wide picture."""
    plan = make_plan(CONNECTORS[name], image_fit=fit)
    return look_inside(make_model(plan), plan, make_sample(dotted((120, 60), (0.5, 0.5))), max_new_tokens=5)
