"""A run as the folder of transformers' BLIP-2 class, or of InstructBLIP's where the Q-Former reads the instruction."""

from __future__ import annotations

import copy
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
    NORM_NOTE,
    blip2_config,
    blip2_state,
    class_of,
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
_SEEN = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
"""What soft tokens depend on."""


class Blip2Form:
    """See `mmexp.hf.form.Form`."""

    auto: ClassVar[str] = "AutoModelForImageTextToText"
    tag: ClassVar[str] = "blip-2"
    task: ClassVar[str] = "image-text-to-text"

    def __init__(self, plan: Plan) -> None:
        self.plan, self.cls = plan, class_of(plan)

    @cached_property
    def words(self) -> Words:
        """The tokenizer with its placeholder."""
        return build_words(self.plan)

    @property
    def image_token_id(self) -> int:
        return self.words.image_token_id

    def refusals(self) -> list[ConfigError]:
        found = vision_refusals(self.plan, self.cls)
        return found or [*llm_refusals(self.plan), *self._prompt_refusals()]

    def write(self, model: MultimodalModel, folder: Path) -> None:
        config: Any = blip2_config(self.plan, model, self.image_token_id, self.words.stop_ids)
        state = blip2_state(model, config.text_config.vocab_size, self.cls)
        require_complete(state, config, self.cls)
        save_state(state, folder, common_dtype(state.values()))
        config.save_pretrained(folder)
        write_processor(self.plan, self.words.tokenizer, folder, reader=self._reader())
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
        text = self._text(turns)
        inputs = processor(images=picture_of(turns), text=text, return_tensors="pt")
        if "qformer_input_ids" in inputs:  # which the processor cuts only together with the LLM's
            read = processor.qformer_tokenizer(text, truncation=True, return_tensors="pt")
            inputs |= {f"qformer_{name}": read[name] for name in ("input_ids", "attention_mask")}
        return inputs

    def run(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        seen = {name: inputs[name] for name in _SEEN if name in inputs}
        return model.get_image_features(**seen).pooler_output, model(**inputs).logits

    def use(self) -> str:
        text = self._text(_asked(_ASKED))
        start = "" if self.plan.spec.reads_apart else ', inputs["input_ids"].shape[1] :'
        return _USE.replace("TEXT", json.dumps(text)).replace("START", start)

    def notes(self) -> list[str]:
        notes, reader = [NORM_NOTE], self._reader()
        if reader is not None:
            notes.append(f"The Q-Former was trained with the last {reader.model_max_length} tokens of a longer"
                         " instruction; the processor here cuts only with truncation=True.")  # fmt: skip
        elif getattr(self.plan.inputs["image"].connector, "has_text", False):
            notes.append("The Q-Former's text path is left out: its queries were trained without text beside them.")
        return notes

    def _reader(self) -> Any:
        """The Q-Former's tokenizer as ours cuts; None where it reads no instruction."""
        own = self.plan.inputs["image"].instruction_tokenizer
        if own is None:
            return None
        reader = copy.deepcopy(own.hf)
        reader.model_max_length, reader.truncation_side = own.spec.max_tokens, "left"
        reader.init_kwargs["truncation_side"] = "left"  # what is saved
        return reader

    def _text(self, turns: Sequence[Turn]) -> str:
        """What is typed into the processor, which puts the placeholders and the tokenizer's own marks."""
        return "".join(segment.text for segment in self.plan.template.render(turns, generation_prompt=True))

    @property
    def _processor(self) -> str:
        return "a Blip2Processor" if self._reader() is None else "an InstructBlipProcessor"

    def _prompt_refusals(self) -> list[ConfigError]:
        """Whether placeholders, and then the tokenizer's idea of a text, give the template's prompt."""
        item, text, reader = self.prompt(_asked(_ASKED), "check"), self._text(_asked(_ASKED)), self._reader()
        ours = with_placeholders(item, self.image_token_id).tolist()
        if reader is not None and reader(text, truncation=True).input_ids != item.instructions["image"][0].tolist():
            return [ConfigError(f"{self.plan.template.name} gives the Q-Former other words than the LLM",
                                expected="no system text, since an InstructBlipProcessor has one text for both",
                                where="template", fix="template=instructblip")]  # fmt: skip
        theirs = [self.image_token_id] * self.plan.inputs["image"].num_soft_tokens + self.words.tokenizer(
            text
        ).input_ids
        if ours == theirs:
            return []
        here, there = (self.words.tokenizer.decode(ids[-24:]) for ids in (ours, theirs))
        return [ConfigError(f"{self.plan.template.name} asks with {here!r}, {self._processor} with {there!r}",
                            expected="the picture first, then text as the LLM's tokenizer begins and ends it",
                            where="template", fix="chat and evaluate read the run directory itself")]  # fmt: skip


def write_processor(
    plan: Plan, tokenizer: Any, folder: Path, num_queries: int | None = None, reader: Any = None
) -> None:
    """`Blip2Processor` with the plan's picture rule, or with a `reader` for the Q-Former `InstructBlipProcessor`;
    `preprocessor_config.json` is what older versions read."""
    from transformers import Blip2Processor, BlipImageProcessor, BlipImageProcessorPil, InstructBlipProcessor

    made = build_image_processor(plan.transforms["image"], plan.exact_pixels)
    if plan.image_fit == "squash":
        kind = BlipImageProcessorPil if plan.exact_pixels else BlipImageProcessor
        made = kind(size=made.size, resample=made.resample, image_mean=made.image_mean, image_std=made.image_std)
    queries = plan.inputs["image"].num_soft_tokens if num_queries is None else num_queries
    if reader is None:
        processor: Any = Blip2Processor(made, tokenizer, num_query_tokens=queries)
    else:
        processor = InstructBlipProcessor(made, tokenizer, reader, num_query_tokens=queries)
    processor.save_pretrained(folder)
    made.save_pretrained(folder)


def _asked(text: str) -> tuple[Turn, ...]:
    """A question about a grey picture."""
    from PIL import Image

    return (Turn(role="user", parts=(Medium(source=Image.new("RGB", (32, 32), (128, 128, 128))), Text(text=text))),)
