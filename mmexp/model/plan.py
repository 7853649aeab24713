"""The plan: a model put together from configs alone, checked before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch

from mmexp import hub
from mmexp.contracts import EncoderSpec, LlmSpec
from mmexp.encoder import ImageTransform
from mmexp.errors import ConfigError
from mmexp.model.multimodal import Branch, MultimodalModel
from mmexp.prompt import AnyRes, ChatTemplate, DynamicTiles, Processor, SegmentTokenizer, TiledTransform
from mmexp.prompt.views import SquareTransform

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
        ConfigError: on construction, when one medium alone is longer than a sample may be, or a colour is none.
    """

    inputs: Mapping[str, InputPlan]
    llm: LlmConfig
    template: ChatTemplate
    image_fit: Fit = "crop"
    """How pictures become squares: crop, pad or squash."""
    tiling: DynamicTiles | AnyRes | None = None
    """How pictures become several views; goes before `image_fit`."""
    box_frame: Literal["view", "picture"] = "view"
    """What boxes are written relative to."""
    exact_pixels: bool = False
    """Whether pictures are decoded whole and resized by Pillow, as the published code does."""
    backdrop: tuple[int, int, int] | None = None
    """What lies under transparent pixels, red, green and blue; None shows the colour hidden under them."""
    max_length_tokens: int = 2048
    """Longest sample in tokens, soft tokens included."""

    def __post_init__(self) -> None:
        if self.backdrop is not None and not all(0 <= value <= 255 for value in self.backdrop):
            raise ConfigError(f"{list(self.backdrop)}", expected="red, green and blue, each 0 to 255, or null",
                              where="processor.backdrop")  # fmt: skip
        for modality, branch in self.inputs.items():
            if branch.num_soft_tokens >= self.max_length_tokens:
                raise ConfigError(
                    f"{self.max_length_tokens}",
                    expected=f"more than the {branch.num_soft_tokens} soft tokens of one {modality}",
                    where="processor.max_length_tokens",
                )
            if isinstance(self.tiling, AnyRes):
                self._transform(branch)

    @property
    def hf_tokenizer(self) -> Any:
        """The tokenizer as transformers has it; generation decodes with it."""
        return self.tokenizer.hf

    @cached_property
    def tokenizer(self) -> SegmentTokenizer:
        """The LLM's tokenizer with the special tokens that the template adds."""
        return SegmentTokenizer(self.llm.load_tokenizer(), self.template.new_tokens)

    @cached_property
    def transforms(self) -> dict[str, Callable[[Any], torch.Tensor]]:
        """Per modality the function from a raw medium to the encoder's values."""
        return {modality: self._transform(branch) for modality, branch in self.inputs.items()}

    @property
    def image_rule(self) -> str:
        """How pictures become views, in words."""
        return str(self.tiling or self.image_fit)

    @cached_property
    def processor(self) -> Processor:
        """Samples to items; data workers get this and no module."""
        return Processor(
            template=self.template,
            tokenizer=self.tokenizer,
            transforms=self.transforms,
            slot_lengths={modality: self._slots(modality, branch) for modality, branch in self.inputs.items()},
            max_length_tokens=self.max_length_tokens,
            box_frame=self.box_frame,
            exact=self.exact_pixels,
            backdrop=self.backdrop,
        )

    def _transform(self, branch: InputPlan) -> Callable[..., torch.Tensor]:
        if self.tiling is None:
            return self._view(branch, self.image_fit)
        view, padded = self._view(branch, "squash"), self._view(branch, "pad")
        if not (isinstance(view, SquareTransform) and isinstance(padded, SquareTransform)):
            return self._view(branch, self.image_fit)  # not pictures
        return TiledTransform(
            tiling=self.tiling,
            view=view,
            padded=padded,
            num_soft_tokens=branch.num_soft_tokens,
            soft_grid=self._soft_grid(branch) if isinstance(self.tiling, AnyRes) else None,
        )

    def _view(self, branch: InputPlan, fit: Fit) -> Callable[..., torch.Tensor]:
        transform = branch.encoder.transform(fit)
        return replace(transform, exact=self.exact_pixels) if isinstance(transform, ImageTransform) else transform

    def _slots(self, modality: str, branch: InputPlan) -> int | Callable[..., int]:
        transform = self.transforms[modality]
        return transform.num_slots if isinstance(transform, TiledTransform) else branch.num_soft_tokens

    def _soft_grid(self, branch: InputPlan) -> tuple[int, int]:
        ask = getattr(branch.connector, "soft_grid", None)
        grid = ask(branch.spec) if ask else None
        if grid is None or grid[0] * grid[1] != branch.num_soft_tokens:
            raise ConfigError(
                f"the connector's {branch.num_soft_tokens} soft tokens have no place in the picture",
                expected="a grid of soft tokens, since rows and padding are cut out of it",
                where="processor.image_fit=anyres",
                fix="connector=mlp2x without the CLS token, or processor.image_fit=tiles",
            )
        return grid


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

    def _connector(self, branch: InputPlan) -> torch.nn.Module:
        connector = branch.connector.build(branch.spec, self.spec.width)
        rows = self.tiling if isinstance(self.tiling, AnyRes) else None
        if rows is not None and rows.newline and isinstance(self._transform(branch), TiledTransform):
            width = self.spec.width  # LLaVA draws it like this: c121f04 llava/model/llava_arch.py
            connector.register_parameter("newline", torch.nn.Parameter(torch.randn(width) / width**0.5))
        return connector
