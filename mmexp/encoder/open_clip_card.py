"""What is known of a checkpoint of open_clip before its weights are read: architecture, sizes and normalisation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmexp import hub
from mmexp.encoder.transform import CLIP_MEAN, CLIP_STD, Triple
from mmexp.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn

CONFIG = "open_clip_config.json"


@dataclass(frozen=True, kw_only=True)
class Card:
    """An image tower of open_clip."""

    embed_dim: int
    """Width of the tower's output, which features never reach."""
    vision: str
    """`vision_cfg` of open_clip as JSON."""
    quick_gelu: bool = False
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    file: str | None = None
    """Name of the file of weights where the hub repository has a special one."""

    @property
    def cfg(self) -> dict[str, Any]:
        """`vision_cfg` of open_clip."""
        return json.loads(self.vision)

    def tower(self) -> Any:
        """The tower with random weights on the current default device; open_clip's classes share no useful type."""
        from open_clip.model import CLIPVisionCfg, _build_vision_tower

        return _build_vision_tower(self.embed_dim, CLIPVisionCfg(**self.cfg), self.quick_gelu)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a tower; `num_prefix` counts CLS and registers."""

    width: int
    num_blocks: int
    patch: int
    image: int
    num_prefix: int
    is_timm: bool


def find_card(path: str, model: str | None, revision: str | None) -> Card:
    """The card by name of an architecture, else by the checkpoint's own file, else by open_clip's table of checkpoints.

    Raises:
        ConfigError: none of them knows it.
    """
    library = import_open_clip()
    own, listed = _own_config(path, revision), _listed(path)
    if model is None and own is None and listed is None:
        own = _own_config(path, revision, download=True)
    name = model or (None if own else listed[0] if listed else None)
    tag = listed[1] if listed else {}
    if name is None:
        raw = own["model_cfg"] if own else {}
    elif name in library.list_models():
        raw = library.get_model_config(name)
    else:
        raise ConfigError(f"{name!r}", expected="a name of open_clip.list_models()", where="encoder.model")
    seen = (own or {}).get("preprocess_cfg", {})
    return Card(
        embed_dim=raw["embed_dim"],
        vision=json.dumps({**raw["vision_cfg"], "patch_dropout": 0.0, "timm_model_pretrained": False}),
        quick_gelu=bool(raw.get("quick_gelu", False) or tag.get("quick_gelu", False)),
        mean=_triple(seen.get("mean") or tag.get("mean") or CLIP_MEAN),
        std=_triple(seen.get("std") or tag.get("std") or CLIP_STD),
        file=tag.get("hf_hub", "").removeprefix(f"{path}/") or None,
    )


@lru_cache(maxsize=8)
def sizes_of(card: Card) -> Sizes:
    """Sizes of the tower, without memory behind its weights.

    Raises:
        ConfigError: it gives no row of patch features.
    """
    cfg = card.cfg
    if not cfg.get("timm_model_name") and isinstance(cfg.get("layers", 12), list):
        raise _no_patches("a ResNet")
    with torch.device("meta"):
        tower = card.tower()
    if cfg.get("timm_model_name"):
        return _timm_sizes(tower.trunk)
    if len(set(tower.image_size)) > 1 or len(set(tower.patch_size)) > 1:
        raise _no_patches("a tower for pictures that are not square")
    return Sizes(
        width=tower.transformer.width,
        num_blocks=tower.transformer.layers,
        patch=tower.patch_size[0],
        image=tower.image_size[0],
        num_prefix=1,
        is_timm=False,
    )


def with_eps(card: Card, eps: float) -> Card:
    """The same tower with another epsilon in every LayerNorm."""
    cfg = card.cfg
    if cfg.get("timm_model_name"):
        raise ConfigError(
            f"{eps}", expected="null, since timm sets the norms of this architecture", where="encoder.norm_eps"
        )
    return replace(card, vision=json.dumps({**cfg, "norm_kwargs": {"eps": eps}}))


def import_open_clip() -> Any:
    """The package, which is imported only when an encoder of it is asked for."""
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(
            "open_clip is not installed", where="encoder", fix="pip install open_clip_torch (EVA and SigLIP need timm)"
        ) from error
    return open_clip


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return (red, green, blue)


def _timm_sizes(trunk: nn.Module) -> Sizes:
    known = all(hasattr(trunk, name) for name in ("blocks", "patch_embed", "num_prefix_tokens", "set_input_size"))
    if not known:
        raise _no_patches(type(trunk).__name__)
    any_trunk: Any = trunk
    return Sizes(
        width=any_trunk.embed_dim,
        num_blocks=len(any_trunk.blocks),
        patch=any_trunk.patch_embed.patch_size[0],
        image=any_trunk.patch_embed.img_size[0],
        num_prefix=any_trunk.num_prefix_tokens,
        is_timm=True,
    )


def _no_patches(what: str) -> ConfigError:
    return ConfigError(
        f"{what} gives no row of patch features", expected="a vision transformer of open_clip", where="encoder.model"
    )


def _own_config(path: str, revision: str | None, download: bool = False) -> dict[str, Any] | None:
    """open_clip_config.json beside the weights or in the Hugging Face cache; the hub is asked only on request."""
    place = Path(path).expanduser()
    file = (place.parent if place.is_file() else place) / CONFIG
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    if place.exists() or hub.is_local(path) or hub.is_weights_file(path):
        if download:
            raise ConfigError(
                f"{path}: no {CONFIG} beside it" if place.exists() else f"no such file or folder: {path}",
                expected="the architecture of these weights",
                where="encoder.path",
                fix="encoder.model=<a name of open_clip, such as ViT-bigG-14>",
            )
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, CONFIG, revision=revision)
    if isinstance(cached, str):
        return json.loads(Path(cached).read_text(encoding="utf-8"))
    if not download:
        return None
    try:
        return json.loads(hub.weights_file(path, (CONFIG,), revision, "encoder").read_text(encoding="utf-8"))
    except CheckpointError as error:
        raise ConfigError(error.found, expected=error.expected, where=error.where, fix=error.fix) from error


@lru_cache(maxsize=16)
def _listed(path: str) -> tuple[str, dict[str, Any]] | None:
    """Architecture and settings of a hub id in open_clip's table of published checkpoints."""
    library = import_open_clip()
    for model, tag in library.list_pretrained():
        cfg = library.get_pretrained_cfg(model, tag)
        if (cfg.get("hf_hub") or "").startswith(f"{path}/"):
            return model, cfg
    return None
