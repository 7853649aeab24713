"""The plan: a model put together from configs alone, checked before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from mmexp import hub
from mmexp.contracts import LlmSpec
from mmexp.errors import ConfigError
from mmexp.model.multimodal import Branch, MultimodalModel
from mmexp.model.prompt_plan import InputPlan, PromptPlan
from mmexp.prompt import AnyRes, InstructionTokenizer, SegmentTokenizer, TiledTransform


@dataclass(frozen=True, kw_only=True)
class Plan(PromptPlan):
    """Everything that follows from the component configs: shapes, token counts, processor, and how to build.

    Raises:
        ConfigError: on construction, when the parts do not fit together.
    """

    spec: LlmSpec = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "spec", self.llm.spec())
        if self.max_length_tokens > self.spec.max_length_tokens:
            raise ConfigError(
                f"{self.max_length_tokens}",
                expected=f"at most {self.spec.max_length_tokens}, the LLM's longest sequence",
                where="processor.max_length_tokens",
            )
        if self.spec.reads_apart:
            self.template.check_apart(self.spec.model_type)
        for branch in self.inputs.values():
            with torch.device("meta"):
                branch.connector.build(branch.spec, self.spec.width)

    @property
    def _instructions(self) -> dict[str, InstructionTokenizer]:
        return super()._instructions if self.spec.width else {}

    @cached_property
    def tokenizer(self) -> SegmentTokenizer:
        """The LLM's tokenizer, checked against the embedding table."""
        tokenizer = SegmentTokenizer(self.llm.load_tokenizer(), self.template.new_tokens)
        own = tokenizer.vocab_size - len(tokenizer.new_tokens)
        if own > self.spec.vocab_size:
            raise ConfigError(
                f"the tokenizer has {own} tokens",
                expected=f"at most {self.spec.vocab_size}, the rows of the LLM's embedding table",
                where="llm",
                fix="use the tokenizer that belongs to these weights",
            )
        ids, published = [tokenizer.control_id(token) for token in tokenizer.new_tokens], self._published_ids
        if published is not None and ids != list(published):
            raise ConfigError(f"new tokens get the ids {ids}", expected=f"{list(published)}, as published",
                              where="llm.tokenizer", fix="name a folder with the tokenizer")  # fmt: skip
        return tokenizer

    @cached_property
    def _published_ids(self) -> range | None:
        """Ids of the new tokens by what is known of a published tokenizer; None where nothing is."""
        source = getattr(self.llm, "tokenizer", None) or getattr(self.llm, "path", "")
        return hub.published_ids(str(source), self.template.new_tokens)

    @cached_property
    def new_ids(self) -> range:
        """Ids of the tokens that the template adds to the tokenizer; the LLM gets rows for them.

        Raises:
            ConfigError: the tokenizer spreads them, or leaves rows empty in front of them.
        """
        if not self.template.new_tokens:  # known without a tokenizer, which a plan for the doctor may not have
            return range(0)
        if self._published_ids is not None:
            return self._published_ids
        ids = [self.tokenizer.control_id(token) for token in self.tokenizer.new_tokens]
        if not ids:
            return range(0)
        if ids != list(range(ids[0], ids[0] + len(ids))) or ids[0] > self.spec.vocab_size:
            raise ConfigError(
                f"the tokenizer gives the template's new tokens the ids {ids}",
                expected=f"ids in a row, from {self.spec.vocab_size} (the rows of the LLM's embedding table) or below",
                where="template.new_tokens",
            )
        return range(ids[0], ids[0] + len(ids))

    def build(self) -> MultimodalModel:
        """The model with its base weights."""
        branches = {
            modality: Branch(branch.encoder.build(), self._connector(branch), branch.spec)
            for modality, branch in self.inputs.items()
        }
        return MultimodalModel(self._with_new_tokens(self.llm.build()), branches)

    def empty(self) -> MultimodalModel:
        """The model without memory behind its weights (meta device): for counting."""
        with torch.device("meta"):
            branches = {
                modality: Branch(branch.encoder.empty(), self._connector(branch), branch.spec)
                for modality, branch in self.inputs.items()
            }
            return MultimodalModel(self._with_new_tokens(self.llm.empty()), branches)

    def _with_new_tokens(self, llm: Any) -> Any:
        if self.new_ids:
            llm.add_tokens(self.new_ids[0], len(self.new_ids))
        return llm

    def build_connector(self, modality: str) -> torch.nn.Module:
        """The connector of a modality alone."""
        return self._connector(self.inputs[modality])

    def _connector(self, branch: InputPlan) -> torch.nn.Module:
        connector = branch.connector.build(branch.spec, self.spec.width)
        rows = self.tiling if isinstance(self.tiling, AnyRes) else None
        if rows is not None and rows.newline and isinstance(self._transform(branch), TiledTransform):
            width = self.spec.width  # LLaVA draws it like this: c121f04 llava/model/llava_arch.py
            connector.register_parameter("newline", torch.nn.Parameter(torch.randn(width) / width**0.5))
        return connector
