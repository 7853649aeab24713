"""The vision transformers of LAVIS: EVA-CLIP ViT-g and CLIP ViT-L without their last block and final norm.

Weights may be stored in 16 bit: of linear and convolution layers only, as LAVIS converts them. Norms, positions and the
sum that runs through the blocks stay float32, so a block casts where it enters a linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from mmexp.encoder.quick_gelu import quick_gelu

if TYPE_CHECKING:
    from torch import Tensor


class Eva(nn.Module):
    """EVA ViT: pre-norm blocks, biases on queries and values only, no norm before or after.

    Source: salesforce/LAVIS @ 506965b lavis/models/eva_vit.py; names are those of `eva_vit_g.pth`.

    Args:
        width: E
        num_blocks: Blocks that run.
        num_heads: Attention heads.
        mlp_width: Channels between the two layers of an MLP.
        patch_size: Side of a patch in pixels.
        num_patches: Of one picture, without CLS.
    """

    POSITIONS = "pos_embed"
    ALIGN_CORNERS = False
    LEFT_OUT = ("norm.", "fc_norm.", "head.")

    def __init__(
        self, width: int, num_blocks: int, num_heads: int, mlp_width: int, patch_size: int, num_patches: int
    ) -> None:
        super().__init__()
        self.width = width
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_size, patch_size)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + num_patches, width))
        self.blocks = nn.ModuleList(EvaBlock(width, num_heads, mlp_width) for _ in range(num_blocks))
        initialise(self)

    def forward(self, values: Tensor) -> Tensor:
        """float[M, 3, S, S] to float[M, 1 + P, E], CLS first."""
        patches = patchify(self.patch_embed["proj"], values)
        hidden = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    @staticmethod
    def block_name(index: int) -> str:
        """How keys of a block begin."""
        return f"blocks.{index}."


class EvaBlock(nn.Module):
    """float[M, 1 + P, E] to the same."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = EvaAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp_width), "fc2": nn.Linear(mlp_width, width)})

    def forward(self, hidden: Tensor) -> Tensor:
        """Attention, then MLP with exact GELU, each added to what came in."""
        hidden = hidden + self.attn(self.norm1(hidden))
        inner = functional.gelu(apply(self.mlp["fc1"], self.norm2(hidden)))
        return hidden + apply(self.mlp["fc2"], inner)


class EvaAttention(nn.Module):
    """Keys have no bias at all: it is no parameter, and zero."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """float[M, 1 + P, E] to the same."""
        weight = self.qkv.weight
        hidden = hidden.to(weight.dtype)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias]).to(weight.dtype)
        is_plain = isinstance(self.qkv, nn.Linear)  # else it has an adapter, which has to be called
        joint = functional.linear(hidden, weight, bias) if is_plain else self.qkv(hidden) + bias
        return apply(self.proj, attend(joint, self))


class ClipVit(nn.Module):
    """CLIP ViT: a norm before the blocks, QuickGELU, a convolution without bias.

    Source: salesforce/LAVIS @ 506965b lavis/models/clip_vit.py; names are those of `clip_vit_L.pth`. Arguments as of
    `Eva`.
    """

    POSITIONS = "positional_embedding"
    ALIGN_CORNERS = True
    LEFT_OUT = ("ln_post.", "proj")

    def __init__(
        self, width: int, num_blocks: int, num_heads: int, mlp_width: int, patch_size: int, num_patches: int
    ) -> None:
        super().__init__()
        self.width = width
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + num_patches, width))
        self.ln_pre = nn.LayerNorm(width)
        blocks = nn.ModuleList(ClipBlock(width, num_heads, mlp_width) for _ in range(num_blocks))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        initialise(self)

    def forward(self, values: Tensor) -> Tensor:
        """float[M, 3, S, S] to float[M, 1 + P, E], CLS first."""
        patches = patchify(self.conv1, values)
        hidden = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        hidden = self.ln_pre(hidden + self.positional_embedding)
        for block in self.transformer["resblocks"]:  # type: ignore[attr-defined]  # a ModuleList
            hidden = block(hidden)
        return hidden

    @staticmethod
    def block_name(index: int) -> str:
        """How keys of a block begin."""
        return f"transformer.resblocks.{index}."


class ClipBlock(nn.Module):
    """float[M, 1 + P, E] to the same."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.attn = ClipAttention(width, num_heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, mlp_width), "c_proj": nn.Linear(mlp_width, width)})
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Attention, then MLP with QuickGELU, each added to what came in."""
        hidden = hidden + self.attn(self.ln_1(hidden))
        inner = apply(self.mlp["c_fc"], self.ln_2(hidden))
        return hidden + apply(self.mlp["c_proj"], quick_gelu(inner))


class ClipAttention(nn.Module):
    """`nn.MultiheadAttention` by name and result; LAVIS leaves its joint projection in float32."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """float[M, 1 + P, E] to the same."""
        return apply(self.out_proj, attend(functional.linear(hidden, self.in_proj_weight, self.in_proj_bias), self))


def attend(qkv: Tensor, module: EvaAttention | ClipAttention) -> Tensor:
    """Joint projection float[M, L, 3E] to what each position takes from all, float[M, L, E]."""
    query, key, value = qkv.unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def apply(linear: nn.Module, hidden: Tensor) -> Tensor:
    """A linear layer in the dtype in which its weights are stored."""
    return linear(hidden.to(linear.weight.dtype))  # type: ignore[arg-type]  # of a linear layer


def patchify(conv: nn.Module, values: Tensor) -> Tensor:
    """float[M, 3, S, S] to float[M, P, E]."""
    return apply(conv, values).flatten(2).transpose(1, 2)


def initialise(module: nn.Module) -> None:
    """Matrices and embeddings from a truncated normal distribution of deviation 0.02, biases zero, norms as usual."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1 or "class_embedding" in name:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def store(module: nn.Module, dtype: torch.dtype) -> None:
    """Weights and biases of linear and convolution layers in `dtype`; all else stays. Source: LAVIS, its fp16 rule."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(dtype)
