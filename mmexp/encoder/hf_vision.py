"""CLIP, SigLIP and DINOv2 vision encoders through transformers, from a hub id or a local folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mmexp import hub
from mmexp.contracts import EncoderSpec
from mmexp.encoder.quick_gelu import replace_quick_gelu
from mmexp.encoder.transform import CLIP_MEAN, CLIP_STD, Fit, ImageTransform
from mmexp.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

_FAMILIES = {"clip_vision_model": 1, "siglip_vision_model": 0, "dinov2": 1}
"""transformers model types and how many prefix tokens (CLS) they put before the patches."""
_NORMALISATION = {
    "clip_vision_model": (CLIP_MEAN, CLIP_STD),
    "siglip_vision_model": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True, kw_only=True)
class HfVisionConfig:
    """A vision transformer of the CLIP, SigLIP or DINOv2 family.

    Source: LLaVA `llava/model/multimodal_encoder/clip_encoder.py`: the features are one entry of `hidden_states`,
    without post-LayerNorm, and the CLS token is dropped.
    """

    path: str
    """Hub id, or a folder with config.json and model.safetensors; a whole CLIP or SigLIP model may be given."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    select_layer: int = -2
    """Index into `hidden_states`, where 0 is the patch embedding: -2 is the output of the last block but one."""
    select_feature: Literal["patch", "cls_patch"] = "patch"
    """Whether the CLS token is dropped (`patch`) or kept as the first of the P positions (`cls_patch`)."""
    image_size_px: int | None = None
    """Side of the input square; null takes the checkpoint's own. Only DINOv2 resizes its position table."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How the weights are stored; a part that trains wants float32."""
    from_scratch: bool = False
    """Takes the architecture of `path` (its config.json) with random weights."""

    def spec(self) -> EncoderSpec:
        config = self._vision_config()
        size = self._size(config)
        side = size // config.patch_size
        return EncoderSpec(
            width=config.hidden_size,
            grid=(side, side),
            num_prefix=self._num_prefix(config),
            item_shape=(3, size, size),
        )

    def transform(self, fit: Fit) -> Callable[[Any], Tensor]:
        config = self._vision_config()
        mean, std = _NORMALISATION[config.model_type]
        return ImageTransform(size_px=self._size(config), fit=fit, **self._published_normalisation(mean, std))

    def build(self) -> HfVision:
        config = self._vision_config()
        drop = _FAMILIES[config.model_type] - self._num_prefix(config)
        return HfVision(self.whole(), self._num_blocks(config), drop=drop)

    def whole(self) -> Any:
        """The transformers model with all its blocks: what an export writes beside the blocks that run."""
        config = self._vision_config()
        if self.from_scratch:
            return _vision_class(config.model_type)(config).to(getattr(torch, self.dtype))
        source = hub.resolve(self.path, "encoder")
        model_class = _vision_class(config.model_type)
        try:
            model = model_class.from_pretrained(
                source, revision=self.revision, dtype=getattr(torch, self.dtype), trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise hub.unavailable(source, error, "encoder", CheckpointError) from error
        if model.config.hidden_size != config.hidden_size:
            raise CheckpointError(
                f"width {model.config.hidden_size}", expected=f"{config.hidden_size} as planned", where="encoder.path"
            )
        return model

    def empty(self) -> HfVision:
        """The module with random weights on the current default device: `torch.device('meta')` sizes it for free."""
        config = self._vision_config()
        drop = _FAMILIES[config.model_type] - self._num_prefix(config)
        model = _vision_class(config.model_type)(config).to(getattr(torch, self.dtype))
        return HfVision(model, self._num_blocks(config), drop=drop)

    def _vision_config(self) -> PretrainedConfig:
        from transformers import AutoConfig

        raw = hub.read_config(self.path, self.revision, "encoder")
        if "vision_config" in raw:
            kind = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}.get(raw.get("model_type", ""))
            raw = {**raw["vision_config"], "model_type": kind or raw["vision_config"].get("model_type")}
        kind = raw.get("model_type")
        if kind not in _FAMILIES:
            raise ConfigError(
                f"model_type {kind!r} in {self.path}", expected=" or ".join(_FAMILIES), where="encoder.path"
            )
        return AutoConfig.for_model(**raw)

    def _size(self, config: PretrainedConfig) -> int:
        size = self.image_size_px or config.image_size
        if size != config.image_size and config.model_type != "dinov2":
            raise ConfigError(
                f"{size}",
                expected=f"{config.image_size}, the size of the position table",
                where="encoder.image_size_px",
                fix=f"encoder.image_size_px={config.image_size}, or an encoder that was trained at {size} px",
            )
        if size % config.patch_size and config.model_type != "dinov2":
            size -= size % config.patch_size
        if size % config.patch_size:
            raise ConfigError(
                f"{size}", expected=f"a multiple of the patch size {config.patch_size}", where="encoder.image_size_px"
            )
        return size

    def _num_prefix(self, config: PretrainedConfig) -> int:
        return _FAMILIES[config.model_type] if self.select_feature == "cls_patch" else 0

    def _num_blocks(self, config: PretrainedConfig) -> int:
        layers = config.num_hidden_layers
        index = self.select_layer if self.select_layer >= 0 else layers + 1 + self.select_layer
        if not 1 <= index <= layers:
            raise ConfigError(
                f"{self.select_layer}", expected=f"-{layers} to -1, or 1 to {layers}", where="encoder.select_layer"
            )
        return index

    def _published_normalisation(self, mean: Any, std: Any) -> dict[str, Any]:
        """Mean and std of the checkpoint's own preprocessor file when it is at hand, else the family's."""
        if hub.is_local(self.path):
            file = Path(self.path).expanduser() / "preprocessor_config.json"
            if file.is_file():
                raw = json.loads(file.read_text(encoding="utf-8"))
                mean, std = raw.get("image_mean", mean), raw.get("image_std", std)
        return {"mean": tuple(mean), "std": tuple(std)}


class HfVision(nn.Module):
    """The blocks up to the selected layer; later ones are taken out, so they cost neither time nor memory.

    Args:
        model: A transformers vision model.
        num_blocks: How many blocks run.
        drop: How many leading positions (CLS) the features lose.
    """

    def __init__(self, model: nn.Module, num_blocks: int, drop: int) -> None:
        super().__init__()
        blocks = repeated_blocks(model)
        del blocks[num_blocks:]
        replace_quick_gelu(model)
        self.model: Any = model  # transformers' models share no useful static type
        self.drop = drop

    def forward(self, values: Tensor) -> Tensor:
        """float[M, 3, S, S] to float[M, P, E]."""
        hidden = self.model(values.to(self.model.dtype), output_hidden_states=True).hidden_states
        return hidden[-1][:, self.drop :]


def repeated_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of equal blocks of a transformer, found by being the longest one."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


def _vision_class(model_type: str) -> Any:
    import transformers

    name = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel", "dinov2": "Dinov2Model"}
    return getattr(transformers, name[model_type])
