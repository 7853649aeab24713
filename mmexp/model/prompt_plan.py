"""What of a plan samples meet before any model sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from mmexp.contracts import EncoderSpec, InstructionSpec
from mmexp.encoder import ImageTransform
from mmexp.errors import ConfigError
from mmexp.llm import load_tokenizer
from mmexp.prompt import (
    AnyRes,
    ChatTemplate,
    DynamicTiles,
    InstructionTokenizer,
    Processor,
    SegmentTokenizer,
    TiledTransform,
)
from mmexp.prompt.views import SquareTransform

if TYPE_CHECKING:
    import torch

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

    @property
    def instruction(self) -> InstructionSpec | None:
        """What the connector reads beside the features; None where it reads nothing."""
        ask = getattr(self.connector, "instruction", None)
        return ask() if ask else None

    @cached_property
    def instruction_tokenizer(self) -> InstructionTokenizer | None:
        """Of a connector that reads beside its features.

        Raises:
            ConfigError: there is none where the config says, or it does not fit the connector.
        """
        spec = self.instruction
        return spec and InstructionTokenizer(load_tokenizer(spec.tokenizer, where="connector"), spec)


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
            instructions=self._instructions,
        )

    @property
    def _instructions(self) -> dict[str, InstructionTokenizer]:
        """Per modality what a connector reads with."""
        found = {modality: branch.instruction_tokenizer for modality, branch in self.inputs.items()}
        return {modality: tokenizer for modality, tokenizer in found.items() if tokenizer is not None}

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
