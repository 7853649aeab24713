"""BLIP-2's first stage as the folder of transformers' class for scores of pictures and texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mmexp.contracts import Sample, Text, Turn
from mmexp.errors import ConfigError
from mmexp.hf.base import State, common_dtype, require_equal_names, save_state
from mmexp.hf.blip2 import lavis_to_hf, ours_to_lavis
from mmexp.hf.blip2_export import NORM_NOTE, qformer_config, vision_config, vision_refusals
from mmexp.hf.blip2_form import write_processor
from mmexp.hf.form import refusal
from mmexp.hf.processor import Words, build_words
from mmexp.hf.scores import ScoreAgreement, Scores, compare_scores, take_scores

if TYPE_CHECKING:
    from torch import nn
    from transformers import Blip2Config

    from mmexp.model import MultimodalModel, Plan

CLASS = "Blip2ForImageTextRetrieval"
_HEADS = ("vision_proj", "text_proj", "itm_head")
_NO_PLACE = re.compile(r"qformer\.cls\..*|temp")
"""What only training needs: the head that predicts text, and the temperature."""
_USE = """from PIL import Image
from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

folder = "."  # this folder
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForZeroShotImageClassification.from_pretrained(folder)
inputs = processor(
    images=Image.open("photo.jpg").convert("RGB"), text=["a dog", "a cat"],
    padding=True, truncation=True, max_length=LONGEST, return_tensors="pt",
)
near = model(**inputs).logits_per_image  # cosine of the nearest query, one column a text
one = {name: values[:1] for name, values in inputs.items()}
no, yes = model(**one, use_image_text_matching_head=True).logits_per_image[0].softmax(0)  # picture and first text"""


class RetrievalForm:
    """See `mmexp.hf.form.Form`.

    Args:
        plan: Of a model without an LLM.
        heads: The objective that trained it, with `mmexp.objective.Embedding`'s methods; None where it has none.
    """

    auto: ClassVar[str] = "AutoModelForZeroShotImageClassification"
    tag: ClassVar[str] = "blip-2"
    task: ClassVar[str] = "zero-shot-image-classification"

    def __init__(self, plan: Plan, heads: nn.Module | None) -> None:
        self.plan = plan
        self.heads: Any = heads

    @cached_property
    def words(self) -> Words:
        """The tokenizer; texts are padded behind, since positions count from the first token."""
        words = build_words(self.plan)
        words.tokenizer.padding_side = "right"
        return words

    def refusals(self) -> list[ConfigError]:
        found = vision_refusals(self.plan, CLASS)
        missing = [name for name in _HEADS if not hasattr(self.heads, name)]
        if missing:
            loss = "this objective" if self.heads is None else type(self.heads).__name__
            found.append(refusal(CLASS, f"{loss} without {', '.join(missing)}",
                                 "objective=blip2_represent with contrast and matching (itc and itm above 0)",
                                 "objective"))  # fmt: skip
        return found or self._text_refusals()

    def write(self, model: MultimodalModel, folder: Path) -> None:
        config, state = self._config(), self._state(model)
        _require_complete(state, config)
        config.dtype = str(common_dtype(state.values())).removeprefix("torch.")
        save_state(state, folder, common_dtype(state.values()))
        config.save_pretrained(folder)
        write_processor(self.plan, self.words.tokenizer, folder, num_queries=0)  # no placeholders in front of a text

    def take(self, model: MultimodalModel, asked: Sequence[tuple[Turn, ...]]) -> Scores:
        return take_scores(self.plan, self.heads, model, asked)

    def compare(self, folder: Path, probes: Scores, tolerance: float) -> ScoreAgreement:
        return compare_scores(folder, self, probes, tolerance)

    @property
    def longest(self) -> int:
        """Tokens of the longest text, its marks included."""
        limit, longest = self.plan.template.max_answer_tokens, self.heads.max_text_tokens
        return longest if limit is None else min(longest, limit + self.words.tokenizer.num_special_tokens_to_add())

    def use(self) -> str:
        return _USE.replace("LONGEST", str(self.longest))

    def notes(self) -> list[str]:
        notes = [NORM_NOTE, f"A text has at most {self.longest} tokens, and is padded behind.",
                 f"Similarities are cosines; training divided them by {self.heads.temp.item():.4g}, which has"
                 " no place here."]  # fmt: skip
        if getattr(self.plan.inputs["image"].connector, "has_head", False):
            notes.append("The Q-Former's head that predicts text is left out.")
        return notes

    def _config(self) -> Blip2Config:
        from transformers import Blip2Config

        return Blip2Config(
            vision_config=vision_config(self.plan),
            qformer_config=qformer_config(self.plan, use_qformer_text_input=True),
            num_query_tokens=self.plan.inputs["image"].num_soft_tokens,
            image_text_hidden_size=self.heads.vision_proj.out_features,
            image_token_index=None,
            architectures=[CLASS],
        )

    def _state(self, model: MultimodalModel) -> State:
        """Raises CheckpointError where a tensor of the model has no place in the class."""
        parts = {name: part.state_dict() for name, part in (model.parts() | {"objective": self.heads}).items()}
        kept = {
            part: {name: tensor for name, tensor in state.items() if not _NO_PLACE.fullmatch(name)}
            for part, state in parts.items()
        }
        return lavis_to_hf(ours_to_lavis(kept), "retrieval")

    def _text_refusals(self) -> list[ConfigError]:
        """Whether the tokenizer alone writes a text as the template does."""
        said = "a red circle"
        turns = (Turn(role="user", parts=()), Turn(role="assistant", parts=(Text(text=said),)))
        ours = self.plan.processor.encode(Sample(id="check", turns=turns)).input_ids.tolist()
        theirs = self.words.tokenizer(said).input_ids
        if ours == theirs:
            return []
        here, there = (self.words.tokenizer.decode(ids) for ids in (ours, theirs))
        return [ConfigError(f"{self.plan.template.name} writes {here!r}, a Blip2Processor {there!r}",
                            expected="a text as its tokenizer begins and ends it", where="template",
                            fix="template=blip2_represent; evaluate reads the run directory itself")]  # fmt: skip


def _require_complete(state: State, config: Blip2Config) -> None:
    """Raises CheckpointError unless the tensors are exactly those of the class."""
    from transformers import Blip2ForImageTextRetrieval

    with torch.device("meta"):
        model = Blip2ForImageTextRetrieval(config)
    require_equal_names(state, model.state_dict(), CLASS)
