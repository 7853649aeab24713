"""The encoders of BLIP-2, InstructBLIP, MiniGPT-4 and VisualGLM: a shortened vision transformer and `ln_vision`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from mmexp import hub
from mmexp.contracts import EncoderSpec
from mmexp.encoder.blip2_names import PREFIX, vision_from_transformers
from mmexp.encoder.eva import ClipVit, Eva, store
from mmexp.encoder.transform import Fit, ImageTransform
from mmexp.encoder.weights import State, load_exactly, read_folder, read_state, resize_positions
from mmexp.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_FAMILIES: dict[str, type[Eva] | type[ClipVit]] = {"eva": Eva, "clip": ClipVit}
_WHOLE = "visual_encoder."
"""Prefix of the vision transformer's keys in a checkpoint of a whole LAVIS model."""
_NORM = "ln_vision."


@dataclass(frozen=True, kw_only=True)
class LavisVisionConfig:
    """Defaults are EVA-CLIP ViT-g/14, 39 of its 40 blocks. Children for a policy: `vit` and `ln_vision`.

    LAVIS trains `ln_vision` also where the ViT is frozen: `stage.policy.encoder={vit: frozen, ln_vision: full}`.

    Source: salesforce/LAVIS @ 506965b lavis/models/{eva_vit,clip_vit}.py, blip2_models/blip2.py.
    """

    path: str
    """`eva_vit_g.pth` or `clip_vit_L.pth` as LAVIS publishes them, a checkpoint of a whole LAVIS model that has
    `visual_encoder.*`, or a folder with a BLIP-2 model of transformers, which also gives `ln_vision`."""
    family: Literal["eva", "clip"] = "eva"
    """Layout of blocks and names."""
    ln_vision_path: str | None = None
    """Checkpoint of a LAVIS model to take `ln_vision.*` from; null starts it with weight 1 and bias 0, which is what
    MiniGPT-4-Llama2 and MiniGPT-v2 keep."""
    select_feature: Literal["patch", "cls_patch"] = "cls_patch"
    """Whether CLS is the first of the P positions (`cls_patch`, for a Q-Former) or dropped (`patch`, MiniGPT-v2)."""
    image_size_px: int = 224
    """Side of the input square."""
    resize_positions: bool = True
    """Whether a position table of another resolution is resized when it is loaded; else that is an error."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How weights of linear and convolution layers are stored; all else, and `ln_vision`, is float32."""
    from_scratch: bool = False
    """Random weights."""
    width: int = 1408
    """E"""
    num_blocks: int = 39
    """Blocks that run; what `path` has beyond them is left out."""
    num_heads: int = 16
    """Attention heads."""
    mlp_width: int = 6144
    """Channels between the two layers of an MLP."""
    patch_size_px: int = 14
    """Side of a patch."""
    trunk: ClassVar[str] = "vit"

    def spec(self) -> EncoderSpec:
        self._check()
        side = self.image_size_px // self.patch_size_px
        prefix = 1 if self.select_feature == "cls_patch" else 0
        item_shape = (3, self.image_size_px, self.image_size_px)
        return EncoderSpec(width=self.width, grid=(side, side), num_prefix=prefix, item_shape=item_shape)

    def transform(self, fit: Fit) -> Callable[[Any], Tensor]:
        return ImageTransform(size_px=self.image_size_px, fit=fit)

    def build(self) -> LavisVision:
        if self.from_scratch:
            return self.empty()
        folder = Path(self.path).expanduser()
        file = folder if folder.is_dir() else hub.weights_file(self.path, (), None, "encoder.path")
        with torch.device("meta"):
            module = self.empty()
        state, norm = _vision_state(file)
        state = self._fitted(state, file)
        later = [module.vit.block_name(index) for index in range(self.num_blocks, _last_block(state, module.vit))]
        load_exactly(module.vit, state, file, (*module.vit.LEFT_OUT, *later))
        module.ln_vision.to_empty(device="cpu").reset_parameters()
        if norm:
            load_exactly(module.ln_vision, norm, file)
        if self.ln_vision_path:
            source = hub.weights_file(self.ln_vision_path, (), None, "encoder.ln_vision_path")
            load_exactly(module.ln_vision, read_state(source, _NORM), source)
        return module

    def empty(self) -> LavisVision:
        """The module with random weights on the current default device."""
        spec = self.spec()
        vit = _FAMILIES[self.family](
            self.width, self.num_blocks, self.num_heads, self.mlp_width, self.patch_size_px, spec.grid[0] ** 2
        )
        store(vit, getattr(torch, self.dtype))
        return LavisVision(vit, drop=1 - spec.num_prefix)

    def _check(self) -> None:
        if self.family not in _FAMILIES:
            raise ConfigError(f"{self.family!r}", expected=" or ".join(_FAMILIES), where="encoder.family")
        for name in ("width", "num_blocks", "num_heads", "mlp_width", "patch_size_px"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)}", expected="at least 1", where=f"encoder.{name}")
        if self.width % self.num_heads:
            raise ConfigError(
                f"{self.num_heads}", expected=f"a divisor of the width {self.width}", where="encoder.num_heads"
            )
        if self.image_size_px < self.patch_size_px or self.image_size_px % self.patch_size_px:
            raise ConfigError(
                f"{self.image_size_px}",
                expected=f"a multiple of the patch size {self.patch_size_px}",
                where="encoder.image_size_px",
            )

    def _fitted(self, state: State, file: Path) -> State:
        """The state with a position table for this resolution."""
        family, grid = _FAMILIES[self.family], self.spec().grid
        name = family.POSITIONS
        if name not in state:
            raise CheckpointError(
                f"no {name}", expected=f"a vision transformer of LAVIS ({self.family})", where=str(file)
            )
        table = state[name].squeeze(0)
        side = round((len(table) - 1) ** 0.5)
        if 1 + side * side != len(table):
            raise CheckpointError(f"{name} of {len(table)} rows", expected="CLS and a square", where=str(file))
        if (side, side) != grid and not self.resize_positions:
            raise CheckpointError(
                f"positions of a {side} x {side} grid ({side * self.patch_size_px} px)",
                expected=f"{grid[0]} x {grid[1]}, since encoder.resize_positions=false",
                where=str(file),
                fix=f"encoder.image_size_px={side * self.patch_size_px}, or encoder.resize_positions=true",
            )
        resized = resize_positions(table, grid, 1, align_corners=family.ALIGN_CORNERS)
        return {**state, name: resized.view(*state[name].shape[:-2], *resized.shape)}


class LavisVision(nn.Module):
    """A vision transformer, then `ln_vision` in float32.

    Args:
        vit: float[M, 3, S, S] to float[M, 1 + P, E].
        drop: How many leading positions (CLS) the features lose.
    """

    def __init__(self, vit: Eva | ClipVit, drop: int) -> None:
        super().__init__()
        self.vit = vit
        self.ln_vision = nn.LayerNorm(vit.width)
        self.drop = drop

    def forward(self, values: Tensor) -> Tensor:
        """float[M, 3, S, S] to float[M, P, E]."""
        return self.finish(self.vit(values))

    @property
    def trunk(self) -> nn.Module:
        """What comes before the layer that may train alone."""
        return self.vit

    def finish(self, hidden: Tensor) -> Tensor:
        """float[M, 1 + P, E] of the trunk to float[M, P, E]."""
        return self.ln_vision(hidden)[:, self.drop :]


def _vision_state(file: Path) -> tuple[State, State]:
    """The vision transformer of a file that has nothing else, of a whole model, or of a BLIP-2 folder, and then also
    the norm behind it."""
    state = vision_from_transformers(read_folder(file, PREFIX), str(file)) if file.is_dir() else read_state(file)
    whole = {name.removeprefix(_WHOLE): tensor for name, tensor in state.items() if name.startswith(_WHOLE)}
    norm = {name.removeprefix(_NORM): tensor for name, tensor in state.items() if name.startswith(_NORM)}
    return whole or state, norm if file.is_dir() else {}


def _last_block(state: State, vit: Eva | ClipVit) -> int:
    """One more than the index of the last block in a state."""
    count = 0
    while any(name.startswith(vit.block_name(count)) for name in state):
        count += 1
    return count
