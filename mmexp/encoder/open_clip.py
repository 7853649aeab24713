"""Vision transformers of the open_clip package, from its own files of weights: a folder, a file or a hub id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mmexp import hub
from mmexp.contracts import EncoderSpec
from mmexp.encoder.open_clip_card import Card, Sizes, find_card, sizes_of, with_eps
from mmexp.encoder.transform import Fit, ImageTransform
from mmexp.encoder.weights import load_exactly, read_state, resize_positions
from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)


@dataclass(frozen=True, kw_only=True)
class OpenClipConfig:
    """Any vision transformer of open_clip: CLIP's own layout, or one of timm (EVA, SigLIP).

    Qwen-VL takes ViT-bigG/14 with `class_token=false`, `norm_eps=1e-6`, the output of all blocks and no final norm: its
    `ln_post` belongs to the resampler. Source: `visual.py` as published with Qwen/Qwen-VL.
    """

    path: str
    """Hub id, a folder with open_clip_config.json, or a file of weights: safetensors, or plain tensors in .bin, .pt."""
    model: str | None = None
    """Name of an architecture of open_clip; null takes what `path` says, or what open_clip knows of that hub id."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    select_layer: int = -1
    """Output of which block, where 0 is the patch embedding: -1 is the last block, -2 the last but one."""
    select_feature: Literal["patch", "cls_patch"] = "patch"
    """Whether CLS is dropped (`patch`) or kept as the first of the P positions (`cls_patch`)."""
    class_token: bool = True
    """False takes CLS out of the model altogether, as Qwen-VL does."""
    final_norm: bool = False
    """Whether the norm behind the last block is applied to the features."""
    image_size_px: int | None = None
    """Side of the input square; null takes the architecture's own."""
    antialias_positions: bool = False
    """How a position table is resized: false as Qwen-VL does (plain bicubic), true as open_clip does. timm's towers are
    always resized as timm does (antialiased), when they are built."""
    norm_eps: float | None = None
    """Epsilon of every LayerNorm; null takes the architecture's own."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How the weights are stored; a part that trains wants float32."""
    from_scratch: bool = False
    """Random weights."""

    def spec(self) -> EncoderSpec:
        sizes = sizes_of(self._card())
        size = self._size(sizes)
        side = size // sizes.patch
        prefix = self._kept(sizes)
        return EncoderSpec(width=sizes.width, grid=(side, side), num_prefix=prefix, item_shape=(3, size, size))

    def transform(self, fit: Fit) -> Callable[[Any], Tensor]:
        card = self._card()
        return ImageTransform(size_px=self._size(sizes_of(card)), fit=fit, mean=card.mean, std=card.std)

    def build(self) -> OpenClipVision | TimmVision:
        card = self._card()
        if self.from_scratch:
            return self._wrap(card.tower(), card)
        names = (card.file, *_WEIGHTS) if card.file else _WEIGHTS
        file = hub.weights_file(self.path, names, self.revision, "encoder.path")
        with torch.device("meta"):
            tower = card.tower()
        kept = tower.state_dict().keys()
        if any(name not in kept for name, _ in tower.named_buffers()):
            tower = card.tower()  # buffers that no file holds must be computed
        tower.to(getattr(torch, self.dtype))
        load_exactly(tower, read_state(file, "visual."), file)
        return self._wrap(tower, card)

    def empty(self) -> OpenClipVision | TimmVision:
        """The module with random weights on the current default device: `torch.device('meta')` sizes it for free."""
        card = self._card()
        return self._wrap(card.tower(), card)

    def _wrap(self, tower: Any, card: Card) -> OpenClipVision | TimmVision:
        sizes = sizes_of(card)
        self._check_norm(tower, sizes)
        tower.to(getattr(torch, self.dtype))
        num_blocks = self._num_blocks(sizes)
        size, drop = self._size(sizes), sizes.num_prefix - self._kept(sizes)
        if sizes.is_timm:
            return TimmVision(tower.trunk, size, num_blocks, drop, self.final_norm)
        side = size // sizes.patch
        vision = OpenClipVision(tower, (side, side), num_blocks, self.final_norm)
        vision.antialias = self.antialias_positions
        if not self.class_token:
            vision.remove_class_token()
        vision.drop = drop if self.class_token else 0
        return vision

    def _card(self) -> Card:
        card = find_card(self.path, self.model, self.revision)
        return card if self.norm_eps is None else with_eps(card, self.norm_eps)

    def _size(self, sizes: Sizes) -> int:
        size = sizes.image if self.image_size_px is None else self.image_size_px
        if self.image_size_px is None:
            size -= size % sizes.patch
        if size < sizes.patch or size % sizes.patch:
            raise ConfigError(
                f"{size}", expected=f"a multiple of the patch size {sizes.patch}", where="encoder.image_size_px"
            )
        return size

    def _kept(self, sizes: Sizes) -> int:
        """Positions before the patches that the features keep."""
        if self.class_token:
            return sizes.num_prefix if self.select_feature == "cls_patch" else 0
        if sizes.is_timm:
            raise ConfigError(
                "false", expected="true, since timm builds this architecture", where="encoder.class_token"
            )
        if self.select_feature == "cls_patch":
            raise ConfigError(
                "cls_patch without a CLS token",
                expected="patch",
                where="encoder.select_feature",
                fix="encoder.select_feature=patch, or encoder.class_token=true",
            )
        return 0

    def _num_blocks(self, sizes: Sizes) -> int:
        layers = sizes.num_blocks
        index = self.select_layer if self.select_layer >= 0 else layers + 1 + self.select_layer
        if not 1 <= index <= layers:
            raise ConfigError(
                f"{self.select_layer}", expected=f"-{layers} to -1, or 1 to {layers}", where="encoder.select_layer"
            )
        return index

    def _check_norm(self, tower: Any, sizes: Sizes) -> None:
        absent = isinstance(tower.trunk.norm, nn.Identity) if sizes.is_timm else tower.attn_pool is not None
        if self.final_norm and absent:
            raise ConfigError(
                "true", expected="false, since this architecture norms after pooling", where="encoder.final_norm"
            )


class OpenClipVision(nn.Module):
    """A tower in CLIP's layout up to the selected block. The position table keeps the size it was trained at and is
    resized in every pass, so weights fit every resolution.

    Args:
        visual: `open_clip.transformer.VisionTransformer`
        grid: Patch rows and columns.
        num_blocks: How many blocks run; later ones are taken out.
        final_norm: Whether the norm behind the last block stays.
    """

    def __init__(self, visual: Any, grid: tuple[int, int], num_blocks: int, final_norm: bool) -> None:
        super().__init__()
        del visual.transformer.resblocks[num_blocks:]
        visual.proj = visual.attn_pool = None
        if not final_norm:
            visual.ln_post = nn.Identity()
        self.visual = visual
        self.grid = grid
        self.antialias = False
        self.drop = 0
        """How many leading positions the features lose."""

    def remove_class_token(self) -> None:
        """Patches alone run through the blocks."""
        self.visual.class_embedding = None
        self.visual.positional_embedding = nn.Parameter(self.visual.positional_embedding.detach()[1:].clone())

    def forward(self, values: Tensor) -> Tensor:
        """float[M, 3, S, S] to float[M, P, E]."""
        visual = self.visual
        hidden = visual.conv1(values.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        token, table = visual.class_embedding, visual.positional_embedding
        if token is not None:
            hidden = torch.cat([token.to(hidden.dtype).expand(len(hidden), 1, -1), hidden], dim=1)
        table = resize_positions(table, self.grid, 0 if token is None else 1, antialias=self.antialias)
        hidden = visual.transformer(visual.ln_pre(hidden + table.to(hidden.dtype)))
        return visual.ln_post(hidden)[:, self.drop :]


class TimmVision(nn.Module):
    """A tower of timm up to the selected block.

    Args:
        trunk: A vision transformer of timm; its position table is resized here.
        size_px: Side of the input square.
        num_blocks: How many blocks run; later ones are taken out.
        drop: How many leading positions the features lose.
        final_norm: Whether the norm behind the last block is applied.
    """

    def __init__(self, trunk: Any, size_px: int, num_blocks: int, drop: int, final_norm: bool) -> None:
        super().__init__()
        trunk.set_input_size(img_size=(size_px, size_px))
        trunk.prune_intermediate_layers([num_blocks - 1], prune_norm=not final_norm, prune_head=True)
        self.trunk = trunk
        self.drop = drop
        self.final_norm = final_norm

    def forward(self, values: Tensor) -> Tensor:
        """float[M, 3, S, S] to float[M, P, E]."""
        dtype = self.trunk.patch_embed.proj.weight.dtype
        has_prefix = self.trunk.num_prefix_tokens > 0
        (last,) = self.trunk.forward_intermediates(
            values.to(dtype),
            indices=1,
            return_prefix_tokens=has_prefix,
            norm=self.final_norm,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return torch.cat([last[1], last[0]], dim=1)[:, self.drop :] if has_prefix else last
