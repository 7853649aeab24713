"""Answers from a model: the generate predictor, the same path for evaluation, chat and preview."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mmexp.contracts import Sample, Turn
from mmexp.data import Collator
from mmexp.llm import Sampling

if TYPE_CHECKING:
    from mmexp.model import MultimodalModel, Plan


class Generator:
    """Calls the model on conversations that end with a user turn.

    Args:
        model: In eval mode, on its device.
        plan: The plan it was built from.
    """

    def __init__(self, model: MultimodalModel, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.collate = Collator(pad_id=plan.tokenizer.pad_id, row="padded")

    def __call__(self, samples: Sequence[Sample], sampling: Sampling) -> list[str]:
        """One answer a sample, in order; prompts of similar length run together."""
        items = [self.plan.processor.encode_prompt(sample.turns, id=sample.id) for sample in samples]
        batch = self.collate(items).to(self.device)
        return self.model.generate(batch, self.plan.tokenizer.hf, self._with_stop(sampling))

    def stream(self, turns: Sequence[Turn], sampling: Sampling, on_text: Callable[[str], None]) -> str:
        """The answer to one conversation, handed out as it comes."""
        item = self.plan.processor.encode_prompt(tuple(turns), id="chat")
        batch = self.collate([item]).to(self.device)
        return self.model.generate(batch, self.plan.tokenizer.hf, self._with_stop(sampling), on_text)[0]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def _with_stop(self, sampling: Sampling) -> Sampling:
        return sampling if sampling.stop else replace(sampling, stop=self.plan.template.stop)
