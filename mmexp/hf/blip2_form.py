"""A run as the folder of transformers' BLIP-2 class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mmexp.contracts import Item, Medium, Text, Turn
from mmexp.errors import ConfigError
from mmexp.hf.base import common_dtype, save_state
from mmexp.hf.blip2_export import (
    CLASS,
    NORM_NOTE,
    blip2_config,
    blip2_state,
    llm_refusals,
    require_complete,
    vision_refusals,
)
from mmexp.hf.processor import Words, build_generation_config, build_image_processor, build_words
from mmexp.hf.verify import Agreement, Probe, compare, picture_of, take_probes, with_placeholders

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.model import MultimodalModel, Plan

_USE = """from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
inputs = processor(images=Image.open("photo.jpg").convert("RGB"), text=TEXT, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(answer[0START], skip_special_tokens=True).strip())"""
_ASKED = "What is in the picture?"


class Blip2Form:
    """See `mmexp.hf.form.Form`."""

    auto: ClassVar[str] = "AutoModelForImageTextToText"
    tag: ClassVar[str] = "blip-2"
    task: ClassVar[str] = "image-text-to-text"

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @cached_property
    def words(self) -> Words:
        """The tokenizer with its placeholder."""
        return build_words(self.plan)

    @property
    def image_token_id(self) -> int:
        return self.words.image_token_id

    def refusals(self) -> list[ConfigError]:
        found = vision_refusals(self.plan, CLASS)
        return found or [*llm_refusals(self.plan), *self._prompt_refusals()]

    def write(self, model: MultimodalModel, folder: Path) -> None:
        config: Any = blip2_config(self.plan, model, self.image_token_id, self.words.stop_ids)
        state = blip2_state(model, config.text_config.vocab_size)
        require_complete(state, config)
        save_state(state, folder, common_dtype(state.values()))
        config.save_pretrained(folder)
        write_processor(self.plan, self.words.tokenizer, folder)
        build_generation_config(self.words).save_pretrained(folder)

    def take(self, model: MultimodalModel, asked: Sequence[tuple[Turn, ...]]) -> list[Probe]:
        return take_probes(self.plan, self, model, asked)

    def compare(self, folder: Path, probes: Sequence[Probe], tolerance: float) -> Agreement:
        return compare(folder, self, probes, self.plan.template.stop, tolerance)

    def prompt(self, turns: Sequence[Turn], name: str) -> Item:
        """With BOS where the template trains it as the first token of an answer: transformers' processor puts it."""
        item = self.plan.processor.encode_prompt(turns, id=name)
        if not self.plan.template.assistant_answer.startswith("{bos}"):
            return item
        bos = torch.tensor([self.plan.tokenizer.control_id("bos")])
        labels = torch.cat([item.labels, torch.full_like(bos, -100)])
        return replace(item, input_ids=torch.cat([item.input_ids, bos]), labels=labels)

    def inputs(self, processor: Any, turns: Sequence[Turn]) -> Any:
        return processor(images=picture_of(turns), text=self._text(turns), return_tensors="pt")

    def run(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        return model.get_image_features(inputs["pixel_values"]).pooler_output, model(**inputs).logits

    def use(self) -> str:
        text = self._text(_asked(_ASKED))
        start = "" if self.plan.spec.reads_apart else ', inputs["input_ids"].shape[1] :'
        return _USE.replace("TEXT", json.dumps(text)).replace("START", start)

    def notes(self) -> list[str]:
        notes = [NORM_NOTE]
        if getattr(self.plan.inputs["image"].connector, "has_text", False):
            notes.append("The Q-Former's text path is left out: its queries were trained without text beside them.")
        return notes

    def _text(self, turns: Sequence[Turn]) -> str:
        """What is typed into the processor, which puts the placeholders and the tokenizer's own marks."""
        return "".join(segment.text for segment in self.plan.template.render(turns, generation_prompt=True))

    def _prompt_refusals(self) -> list[ConfigError]:
        """Whether placeholders, and then the tokenizer's idea of a text, give the template's prompt."""
        ours = with_placeholders(self.prompt(_asked(_ASKED), "check"), self.image_token_id).tolist()
        text = self._text(_asked(_ASKED))
        theirs = [self.image_token_id] * self.plan.inputs["image"].num_soft_tokens + self.words.tokenizer(
            text
        ).input_ids
        if ours == theirs:
            return []
        here, there = (self.words.tokenizer.decode(ids[-24:]) for ids in (ours, theirs))
        return [ConfigError(f"{self.plan.template.name} asks with {here!r}, a Blip2Processor with {there!r}",
                            expected="the picture first, then text as the LLM's tokenizer begins and ends it",
                            where="template", fix="chat and evaluate read the run directory itself")]  # fmt: skip


def write_processor(plan: Plan, tokenizer: Any, folder: Path, num_queries: int | None = None) -> None:
    """`Blip2Processor` with the plan's picture rule; `preprocessor_config.json` is what older versions read."""
    from transformers import Blip2Processor, BlipImageProcessor, BlipImageProcessorPil

    made = build_image_processor(plan.transforms["image"], plan.exact_pixels)
    if plan.image_fit == "squash":
        kind = BlipImageProcessorPil if plan.exact_pixels else BlipImageProcessor
        made = kind(size=made.size, resample=made.resample, image_mean=made.image_mean, image_std=made.image_std)
    queries = plan.inputs["image"].num_soft_tokens if num_queries is None else num_queries
    Blip2Processor(made, tokenizer, num_query_tokens=queries).save_pretrained(folder)
    made.save_pretrained(folder)


def _asked(text: str) -> tuple[Turn, ...]:
    """A question about a grey picture."""
    from PIL import Image

    return (Turn(role="user", parts=(Medium(source=Image.new("RGB", (32, 32), (128, 128, 128))), Text(text=text))),)
