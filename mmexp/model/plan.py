"""The plan: a model put together from configs alone, checked before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from mmexp.contracts import EncoderSpec, LlmSpec
from mmexp.errors import ConfigError
from mmexp.model.multimodal import Branch, MultimodalModel
from mmexp.prompt import ChatTemplate, Processor, SegmentTokenizer

if TYPE_CHECKING:
    from mmexp.connector import ConnectorConfig
    from mmexp.encoder import EncoderConfig
    from mmexp.encoder.transform import Fit
    from mmexp.llm import LlmConfig


@dataclass(frozen=True, kw_only=True)
class InputPlan:
    """One modality's branch before it is built."""

    encoder: EncoderConfig
    connector: ConnectorConfig

    @cached_property
    def spec(self) -> EncoderSpec:
        """Width and grid of the encoder."""
        return self.encoder.spec()

    @cached_property
    def num_soft_tokens(self) -> int:
        """N of one item."""
        return self.connector.num_soft_tokens(self.spec)


@dataclass(frozen=True, kw_only=True)
class PromptPlan:
    """What samples become before any model sees them: all that a preview needs. The LLM gives its tokenizer only.

    Raises:
        ConfigError: on construction, when one medium alone is longer than a sample may be.
    """

    inputs: Mapping[str, InputPlan]
    llm: LlmConfig
    template: ChatTemplate
    image_fit: Fit = "crop"
    """How pictures become squares: crop, pad or squash."""
    max_length_tokens: int = 2048
    """Longest sample in tokens, soft tokens included."""

    def __post_init__(self) -> None:
        for modality, branch in self.inputs.items():
            if branch.num_soft_tokens >= self.max_length_tokens:
                raise ConfigError(
                    f"{self.max_length_tokens}",
                    expected=f"more than the {branch.num_soft_tokens} soft tokens of one {modality}",
                    where="processor.max_length_tokens",
                )

    @cached_property
    def tokenizer(self) -> SegmentTokenizer:
        """The LLM's tokenizer with the special tokens that the template adds."""
        return SegmentTokenizer(self.llm.load_tokenizer(), self.template.new_tokens)

    @cached_property
    def transforms(self) -> dict[str, Callable[[Any], torch.Tensor]]:
        """Per modality the function from a raw medium to the encoder's values."""
        return {modality: branch.encoder.transform(self.image_fit) for modality, branch in self.inputs.items()}

    @cached_property
    def processor(self) -> Processor:
        """Samples to items; data workers get this and no module."""
        return Processor(
            template=self.template,
            tokenizer=self.tokenizer,
            transforms=self.transforms,
            slot_lengths={modality: branch.num_soft_tokens for modality, branch in self.inputs.items()},
            max_length_tokens=self.max_length_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that follows from the component configs: shapes, token counts, processor, and how to build.

    Raises:
        ConfigError: on construction, when the parts do not fit together.
    """

    inputs: Mapping[str, InputPlan]
    llm: LlmConfig
    template: ChatTemplate
    image_fit: Fit = "crop"
    """How pictures become squares: crop, pad or squash."""
    max_length_tokens: int = 2048
    """Longest sample in tokens, soft tokens included."""
    spec: LlmSpec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self.llm.spec())
        if self.max_length_tokens > self.spec.max_length_tokens:
            raise ConfigError(
                f"{self.max_length_tokens}",
                expected=f"at most {self.spec.max_length_tokens}, the LLM's longest sequence",
                where="processor.max_length_tokens",
            )
        for branch in self.prompt.inputs.values():
            with torch.device("meta"):
                branch.connector.build(branch.spec, self.spec.width)

    @cached_property
    def prompt(self) -> PromptPlan:
        """The part of the plan that needs no LLM."""
        return PromptPlan(
            inputs=self.inputs,
            llm=self.llm,
            template=self.template,
            image_fit=self.image_fit,
            max_length_tokens=self.max_length_tokens,
        )

    @property
    def hf_tokenizer(self) -> Any:
        """The tokenizer as transformers has it; generation decodes with it."""
        return self.tokenizer.hf

    @cached_property
    def tokenizer(self) -> SegmentTokenizer:
        """The LLM's tokenizer, checked against the embedding table."""
        tokenizer = self.prompt.tokenizer
        largest, added = tokenizer.vocab_size, ", ".join(tokenizer.new_tokens)
        if largest > self.spec.vocab_size:
            raise ConfigError(
                f"the tokenizer has {largest} tokens" + (f", {added} added by the template" if added else ""),
                expected=f"at most {self.spec.vocab_size}, the rows of the LLM's embedding table",
                where="llm",
                fix=f"an LLM whose embedding has rows for them, or a template that needs no {tokenizer.new_tokens[0]}"
                if added
                else "use the tokenizer that belongs to these weights",
            )
        return tokenizer

    @property
    def checked_prompt(self) -> PromptPlan:
        """`prompt`, once its tokenizer is known to fit the embedding table."""
        _ = self.tokenizer
        return self.prompt

    @property
    def transforms(self) -> dict[str, Callable[[Any], torch.Tensor]]:
        """Per modality the function from a raw medium to the encoder's values."""
        return self.prompt.transforms

    @property
    def processor(self) -> Processor:
        """Samples to items; data workers get this and no module."""
        return self.checked_prompt.processor

    def build(self) -> MultimodalModel:
        """The model with its base weights."""
        branches = {
            modality: Branch(branch.encoder.build(), self._connector(branch), branch.spec)
            for modality, branch in self.inputs.items()
        }
        return MultimodalModel(self.llm.build(), branches)

    def empty(self) -> MultimodalModel:
        """The model without memory behind its weights (meta device): for counting."""
        with torch.device("meta"):
            branches = {
                modality: Branch(branch.encoder.empty(), self._connector(branch), branch.spec)
                for modality, branch in self.inputs.items()
            }
            return MultimodalModel(self.llm.empty(), branches)

    def _connector(self, branch: InputPlan) -> torch.nn.Module:
        return branch.connector.build(branch.spec, self.spec.width)
