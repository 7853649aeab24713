"""A first stage of BLIP-2 on tiny parts, and pairs of pictures and captions for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmexp.connector import QformerConfig
from mmexp.contracts import Batch, Item, Medium, Sample, Text, Turn
from mmexp.data import Collator
from mmexp.encoder import TinyVisionConfig
from mmexp.llm import NoLlmConfig
from mmexp.model import InputPlan, MultimodalModel, Plan
from mmexp.objective import Blip2Represent, Blip2RepresentConfig
from mmexp.prompt import ChatTemplate

TEMPLATE = ChatTemplate(
    name="pairs", begin="", system="", user="{turn}", user_text="drop", assistant_prompt="{[CLS]}",
    assistant_answer="{turn}", assistant_end="{[SEP]}", max_answer_tokens=6,
)  # fmt: skip
CAPTIONS = ("a red circle", "the blue square.", "a green star and a red star", "number 7", "two circles", "red")


def make_plan(tokenizer: Path, **changes: Any) -> Plan:
    qformer = QformerConfig(
        variant=changes.pop("variant", "full"), num_queries=4, width=16, num_layers=2, num_heads=2, ffn_width=24,
        vocab_size=changes.pop("vocab_size", 95), max_text_tokens=changes.pop("max_text_tokens", 12),
    )  # fmt: skip
    return Plan(
        inputs={"image": InputPlan(encoder=TinyVisionConfig(), connector=changes.pop("connector", qformer))},
        llm=changes.pop("llm", NoLlmConfig(tokenizer=str(tokenizer), bos_token="[DEC]")),
        template=TEMPLATE,
        max_length_tokens=64,
        **changes,
    )


def make_samples(count: int, image_ids: tuple[Any, ...] = ()) -> list[Sample]:
    samples = []
    for index in range(count):
        picture = Image.new("RGB", (28, 28), (40 * index, 255 - 40 * index, 90))
        picture.paste((20, 40 * index, 200), (index, index, index + 10, index + 8))
        turns = (
            Turn(role="user", parts=(Medium(source=picture), Text(text="What is it?"))),
            Turn(role="assistant", parts=(Text(text=CAPTIONS[index % len(CAPTIONS)]),)),
        )
        meta = {"image_id": image_ids[index]} if image_ids and image_ids[index] is not None else {}
        samples.append(Sample(id=f"s{index}", turns=turns, meta=meta))
    return samples


def make_batch(plan: Plan, samples: list[Sample], row: str = "flat") -> Batch:
    items: list[Item] = [plan.processor.encode(sample) for sample in samples]
    return Collator(pad_id=plan.tokenizer.pad_id, row=row)(items)


def make_model(plan: Plan, **weights: Any) -> tuple[MultimodalModel, Blip2Represent]:
    """With weights large enough that everything differs, and without dropout."""
    torch.manual_seed(0)
    model = plan.build().eval()
    objective = replace(Blip2RepresentConfig(width=8), **weights).build(plan).eval()
    for module in (model.inputs["image"].connector, objective):
        for name, parameter in module.named_parameters():
            if name != "temp":
                torch.nn.init.normal_(parameter, std=0.4)
    return model, objective
