"""A run as the folder of transformers' LLaVA class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmexp.connector import MlpConfig
from mmexp.contracts import Item, Medium, Part, Text, Turn
from mmexp.errors import ConfigError
from mmexp.hf.base import common_dtype, save_state
from mmexp.hf.llava import feature_strategy, llava_config, llava_state, refusals, require_complete
from mmexp.hf.processor import Words, build_generation_config, build_processor, build_words
from mmexp.hf.verify import Agreement, Probe, compare, take_probes
from mmexp.prompt import load_image, to_jinja

if TYPE_CHECKING:
    from torch import Tensor

    from mmexp.model import MultimodalModel, Plan

_USE = """from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
question = [{"type": "image", "image": "photo.jpg"}, {"type": "text", "text": "What is in the picture?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": question}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=64STOP)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


class LlavaForm:
    """See `mmexp.hf.form.Form`."""

    auto: ClassVar[str] = "AutoModelForImageTextToText"
    tag: ClassVar[str] = "llava"
    task: ClassVar[str] = "image-text-to-text"

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @cached_property
    def words(self) -> Words:
        """Raises ConfigError when the template cannot be written as Jinja."""
        return build_words(self.plan, to_jinja(self.plan.template, self.plan.tokenizer))

    @property
    def image_token_id(self) -> int:
        return self.words.image_token_id

    def refusals(self) -> list[ConfigError]:
        found = list(refusals(self.plan))
        try:
            _ = self.words
        except ConfigError as error:
            found.append(error)
        return found

    def write(self, model: MultimodalModel, folder: Path) -> None:
        words = self.words
        config: Any = llava_config(self.plan, model, words.image_token_id)
        state = llava_state(self.plan, model, config.text_config.vocab_size)
        require_complete(state, config)
        save_state(state, folder, common_dtype(state.values()))
        config.save_pretrained(folder)
        encoder: Any = model.inputs["image"].encoder
        processor = build_processor(self.plan, words, encoder.model.config, feature_strategy(encoder))
        processor.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
        build_generation_config(words).save_pretrained(folder)

    def take(self, model: MultimodalModel, asked: Sequence[tuple[Turn, ...]]) -> list[Probe]:
        return take_probes(self.plan, self, model, asked)

    def compare(self, folder: Path, probes: Sequence[Probe], tolerance: float) -> Agreement:
        return compare(folder, self, probes, self.plan.template.stop, tolerance)

    def prompt(self, turns: Sequence[Turn], name: str) -> Item:
        return self.plan.processor.encode_prompt(turns, id=name)

    def inputs(self, processor: Any, turns: Sequence[Turn]) -> Any:
        return processor.apply_chat_template(
            [_message(turn) for turn in turns],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def run(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        output = model(**inputs)
        return output.image_hidden_states, output.logits

    def use(self) -> str:
        stop = self.plan.template.stop
        return _USE.replace(
            "STOP", f", stop_strings=[{json.dumps(stop)}], tokenizer=processor.tokenizer" if stop else ""
        )

    def notes(self) -> list[str]:
        notes = ["`chat_template.jinja` gives the same token ids."]
        if self.plan.template.stop:
            notes.append(f"Answers end at the text {self.plan.template.stop!r}, which a generation config cannot hold:"
                         " pass `stop_strings` as above.")  # fmt: skip
        connector = self.plan.inputs["image"].connector
        if not (isinstance(connector, MlpConfig) and connector.depth == 2):
            notes.append("The connector has one layer; the class always has two, so the other is the identity and"
                         " `projector_hidden_act` is `linear`.")  # fmt: skip
        return notes


def _message(turn: Turn) -> dict[str, Any]:
    """A turn as transformers' processors take it."""
    return {"role": turn.role, "content": [_content(part) for part in turn.parts]}


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, Medium):
        return {"type": "image", "image": load_image(part.source, "probe")}
    assert isinstance(part, Text)
    return {"type": "text", "text": part.text}
