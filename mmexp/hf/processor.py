"""The text and picture side of an export: tokenizer, chat template and image processor of transformers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmexp.encoder import ImageTransform
from mmexp.errors import ConfigError
from mmexp.prompt.jinja import PLACEHOLDER

if TYPE_CHECKING:
    from transformers import GenerationConfig, LlavaProcessor

    from mmexp.model import Plan


@dataclass(frozen=True, kw_only=True)
class Words:
    """What an export needs to know of the tokenizer."""

    tokenizer: Any
    """With the placeholder, left padding, and the chat template if there is one."""
    image_token_id: int
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""


def build_words(plan: Plan, template: str | None = None) -> Words:
    """The plan's tokenizer with `<image>` as a special token, and a chat template as Jinja."""
    tokenizer = copy.deepcopy(plan.hf_tokenizer)
    tokenizer.add_tokens([PLACEHOLDER], special_tokens=True)
    tokenizer.chat_template = template
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(plan.tokenizer.pad_id)
    return Words(
        tokenizer=tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids(PLACEHOLDER),
        stop_ids=plan.tokenizer.stop_ids(plan.template),
    )


def build_image_processor(transform: Any, exact: bool) -> Any:
    """transformers' image processor for one of our transforms.

    Args:
        transform: Of the image branch.
        exact: Whether Pillow resizes; otherwise torch does.

    Raises:
        ConfigError: it is no plain view of a picture.
    """
    from transformers import LlavaImageProcessor, LlavaImageProcessorPil

    if not isinstance(transform, ImageTransform):
        raise ConfigError(f"{type(transform).__name__}", expected="crop, pad or squash", where="processor.image_fit")
    side = {"height": transform.size_px, "width": transform.size_px}
    settings = {
        "size": side if transform.fit == "squash" else {"shortest_edge": transform.size_px},
        "crop_size": side,
        "do_center_crop": transform.fit == "crop",
        "do_pad": transform.fit == "pad",
        "resample": transform.resample,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }
    return (LlavaImageProcessorPil if exact else LlavaImageProcessor)(**settings)


def build_processor(plan: Plan, words: Words, vision_config: Any, strategy: str) -> LlavaProcessor:
    """The processor that makes our token ids and pixels from messages and pictures."""
    from transformers import LlavaProcessor

    spec = plan.inputs["image"].spec
    grid = spec.grid[0] * spec.grid[1]
    num_prefix = plan.inputs["image"].num_soft_tokens - grid + (strategy == "default")
    return LlavaProcessor(
        image_processor=build_image_processor(plan.transforms["image"], plan.exact_pixels),
        tokenizer=words.tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        chat_template=words.tokenizer.chat_template,
        image_token=PLACEHOLDER,
        num_additional_image_tokens=num_prefix,
    )


def build_generation_config(words: Words) -> GenerationConfig:
    """Greedy answers that end where ours end; a stop text (`template.stop`) has no place in the file."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        bos_token_id=words.tokenizer.bos_token_id,
        eos_token_id=list(words.stop_ids) or None,
        pad_token_id=words.tokenizer.pad_token_id,
    )
