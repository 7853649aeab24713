"""Encoders of open_clip against the package's own towers, on small checkpoints in its real formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from mmexp.encoder import OpenClipConfig, TimmVision
from mmexp.encoder.open_clip_card import sizes_of
from mmexp.errors import CheckpointError, ConfigError
from tests.differences import Differences

TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 28, "layers": 3, "width": 24, "head_width": 12, "patch_size": 7, "mlp_ratio": 1.5}
MODEL = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}


def checkpoint(folder: Path, kind: str = "safetensors", **vision: Any) -> tuple[str, Any]:
    """A folder as open_clip pushes it to a hub, and the CLIP it holds."""
    torch.manual_seed(0)
    model = open_clip.CLIP(8, {**VISION, **vision}, TEXT).eval()
    for parameter in model.visual.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    card = {
        "model_cfg": {**MODEL, "vision_cfg": {**VISION, **vision}},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(card))
    if kind == "safetensors":
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    else:
        state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"epoch": 1, "state_dict": state}, folder / "open_clip_pytorch_model.bin")
    return str(folder), model


@torch.no_grad()
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(("layer", "norm"), [(-1, False), (-1, True), (-2, False), (1, False)])
def test_features_equal_the_tower_s_own(
    tmp_path: Path, differences: Differences, kind: str, layer: int, norm: bool
) -> None:
    path, model = checkpoint(tmp_path, kind)
    values = torch.randn(2, 3, 28, 28)
    index = [layer + 3 if layer < 0 else layer - 1]
    config = OpenClipConfig(path=path, select_layer=layer, final_norm=norm, select_feature="cls_patch")
    out = model.visual.forward_intermediates(
        values, index, normalize_intermediates=norm, output_fmt="NLC", output_extra_tokens=True
    )
    expected = torch.cat([out["image_intermediates_prefix"][0], out["image_intermediates"][0]], dim=1)
    module = config.build()
    differences("open_clip VisionTransformer", "features", module(values), expected, 1e-5, 1.3e-6)
    assert len(module.visual.transformer.resblocks) == index[0] + 1
    patches = OpenClipConfig(path=path, select_layer=layer, final_norm=norm)
    torch.testing.assert_close(patches.build()(values), expected[:, 1:])
    assert (config.spec().num_patches, patches.spec().num_patches, patches.spec().width) == (17, 16, 24)


@torch.no_grad()
def test_qwen_vl_has_no_class_token_and_resizes_positions_in_the_pass(tmp_path: Path, differences: Differences) -> None:
    path, model = checkpoint(tmp_path)
    config = OpenClipConfig(path=path, class_token=False, norm_eps=1e-6, image_size_px=56)
    module, visual = config.build(), model.visual
    values = torch.randn(2, 3, 56, 56)
    maps = visual.positional_embedding[1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    table = functional.interpolate(maps, (8, 8), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    hidden = functional.conv2d(values, visual.conv1.weight, stride=7).flatten(2).transpose(1, 2) + table
    hidden = functional.layer_norm(hidden, (24,), visual.ln_pre.weight, visual.ln_pre.bias, 1e-6)
    for block in visual.transformer.resblocks:
        block.ln_1.eps = block.ln_2.eps = 1e-6
        hidden = block(hidden)
    differences("open_clip VisionTransformer", "Qwen-VL, no CLS", module(values), hidden, 1e-5, 1.3e-6)
    assert config.spec().num_patches == 64
    assert module.state_dict()["visual.positional_embedding"].shape == (16, 24)
    small = OpenClipConfig(path=path, class_token=False).build()
    module.load_state_dict(small.state_dict())


@torch.no_grad()
def test_positions_may_be_resized_as_open_clip_does(tmp_path: Path) -> None:
    path, model = checkpoint(tmp_path)
    large = open_clip.create_model(f"local-dir:{path}", force_image_size=56).eval()
    values = torch.randn(1, 3, 56, 56)
    expected = large.visual.forward_intermediates(values, [2], output_fmt="NLC")["image_intermediates"][0]
    config = OpenClipConfig(path=path, image_size_px=56, antialias_positions=True)
    torch.testing.assert_close(config.build()(values), expected)
    assert model.visual.positional_embedding.shape != large.visual.positional_embedding.shape


@pytest.fixture
def small_eva(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """open_clip's EVA01-g-14 entry with timm's class at a small size, under the same name."""
    import timm.models.eva as eva
    from timm.models._registry import _model_entrypoints

    def tiny(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        sizes = {"patch_size": 14, "embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": 1.5}
        return eva._create_eva("eva_giant_patch14_224", pretrained=pretrained, **{**sizes, **kwargs})

    monkeypatch.setitem(_model_entrypoints, "eva_giant_patch14_224", tiny)
    sizes_of.cache_clear()
    yield open_clip.get_model_config("EVA01-g-14")
    sizes_of.cache_clear()


@torch.no_grad()
@pytest.mark.parametrize("size", [224, 364])
def test_eva_through_timm(tmp_path: Path, small_eva: dict[str, Any], size: int) -> None:
    from open_clip.model import _build_vision_tower

    torch.manual_seed(0)
    tower = _build_vision_tower(small_eva["embed_dim"], small_eva["vision_cfg"]).eval()
    file = tmp_path / "EVA01_CLIP_g_14.pt"
    torch.save({f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}, file)
    config = OpenClipConfig(path=str(file), model="EVA01-g-14", image_size_px=size)
    module = config.build().eval()
    assert isinstance(module, TimmVision)
    values = torch.randn(1, 3, size, size)
    tower.trunk.set_input_size(img_size=(size, size))
    expected = tower.trunk.forward_intermediates(values, [2], output_fmt="NLC", intermediates_only=True)[0]
    torch.testing.assert_close(module(values), expected)
    kept = OpenClipConfig(path=str(file), model="EVA01-g-14", select_layer=-2, select_feature="cls_patch")
    assert kept.build()(torch.randn(1, 3, 224, 224)).shape == (1, kept.spec().num_patches, 24) == (1, 257, 24)


def test_published_sizes_need_no_file() -> None:
    qwen = OpenClipConfig(
        path="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", class_token=False, image_size_px=448, norm_eps=1e-6
    )
    assert (qwen.spec().width, qwen.spec().num_patches, qwen.spec().num_prefix) == (1664, 1024, 0)
    with torch.device("meta"):
        module = qwen.empty()
    assert len(module.visual.transformer.resblocks) == 48
    block = module.visual.transformer.resblocks[0]
    assert (block.attn.num_heads, block.mlp.c_fc.out_features, block.ln_1.eps) == (16, 8192, 1e-6)
    assert isinstance(block.mlp.gelu, torch.nn.GELU)
    eva = OpenClipConfig(path="x.pt", model="EVA01-g-14", select_feature="cls_patch")
    assert (eva.spec().width, eva.spec().num_patches) == (1408, 257)
    large = OpenClipConfig(path="laion/CLIP-ViT-L-14-laion2B-s32B-b82K")
    assert large.transform("crop").mean == (0.5, 0.5, 0.5)
    assert OpenClipConfig(path="x.pt", model="ViT-L-14").transform("crop").mean[0] == 0.48145466


def test_the_checkpoint_s_own_normalisation_is_used(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    transform = OpenClipConfig(path=path).transform("pad")
    assert (transform.size_px, transform.mean) == (28, (0.5, 0.5, 0.5))


def test_the_cache_is_enough_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--lab--vit"
    (repository / "snapshots/0").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0")
    checkpoint(repository / "snapshots/0", "bin")
    config = OpenClipConfig(path="lab/vit")
    assert config.build()(torch.randn(1, 3, 28, 28)).shape == (1, config.spec().num_patches, 24)
    with pytest.raises(ConfigError, match="HF_HOME"):
        OpenClipConfig(path="lab/other").spec()
    with pytest.raises(CheckpointError, match="HF_HOME"):
        OpenClipConfig(path="lab/other", model="ViT-B-32").build()


def test_weights_may_be_stored_in_16_bit(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    module = OpenClipConfig(path=path, dtype="bfloat16").build()
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module(torch.randn(1, 3, 28, 28)).dtype == torch.bfloat16


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    file = f"{path}/open_clip_model.safetensors"
    with pytest.raises(CheckpointError, match="of another shape"):
        OpenClipConfig(path=file, model="ViT-B-16").build()
    save_file({"text.x": torch.ones(1)}, tmp_path / "text.safetensors")
    with pytest.raises(CheckpointError, match="tensors named visual"):
        OpenClipConfig(path=f"{path}/text.safetensors").build()
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="open_clip_model"):
        OpenClipConfig(path=path).build()


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"model": "ViT-bigG"}, "encoder.model"),
        ({"model": "RN50"}, "encoder.model"),
        ({"model": "convnext_base"}, "encoder.model"),
        ({"path": "./nowhere"}, "encoder.path"),
        ({"model": "ViT-B-32", "image_size_px": 225}, "encoder.image_size_px"),
        ({"model": "ViT-B-32", "select_layer": -20}, "encoder.select_layer"),
        ({"model": "ViT-B-32", "class_token": False, "select_feature": "cls_patch"}, "encoder.select_feature"),
        ({"model": "ViT-B-16-SigLIP", "class_token": False}, "encoder.class_token"),
        ({"model": "ViT-B-16-SigLIP", "norm_eps": 1e-6}, "encoder.norm_eps"),
        ({"model": "coca_ViT-B-32", "final_norm": True}, "encoder.final_norm"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], where: str) -> None:
    config = OpenClipConfig(**{"path": "x.pt", **settings})
    with pytest.raises(ConfigError) as caught, torch.device("meta"):
        config.spec()
        config.empty()
    assert caught.value.where == where


def test_siglip_through_timm_has_no_class_token() -> None:
    spec = OpenClipConfig(path="x.pt", model="ViT-B-16-SigLIP").spec()
    assert (spec.num_patches, spec.num_prefix) == (196, 0)
