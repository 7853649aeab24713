"""Encoders against transformers' own classes, on small checkpoints in the real formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmexp.encoder import HfVisionConfig, ImageTransform, TinyVisionConfig
from mmexp.errors import ConfigError
from tests.differences import Differences

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}


def checkpoint(folder: Path, family: str) -> tuple[str, torch.nn.Module]:
    """A small random checkpoint of that family on disk, and the model it holds."""
    torch.manual_seed(0)
    if family == "dinov2":
        config = transformers.Dinov2Config(**{**SMALL, "mlp_ratio": 2}, image_size=28, patch_size=14)
        model = transformers.Dinov2Model(config)
    else:
        kind = {"clip": "CLIPVision", "siglip": "SiglipVision"}[family]
        config = getattr(transformers, f"{kind}Config")(**SMALL, image_size=28, patch_size=14)
        model = getattr(transformers, f"{kind}Model")(config)
    model.eval().save_pretrained(folder)
    return str(folder), model


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize("layer", [-2, -1, 1])
def test_features_equal_transformers_hidden_states(
    tmp_path: Path, differences: Differences, family: str, layer: int
) -> None:
    path, model = checkpoint(tmp_path, family)
    config = HfVisionConfig(path=path, select_layer=layer)
    values = torch.randn(2, 3, 28, 28)
    captured: list[torch.Tensor] = []
    blocks = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    for block in blocks:
        block.register_forward_hook(lambda m, i, o: captured.append(o[0] if isinstance(o, tuple) else o))
    with torch.no_grad():
        model(values)
        features = config.build().eval()(values)
    expected = captured[layer if layer < 0 else layer - 1]
    if family != "siglip":
        expected = expected[:, 1:]
    assert features.shape == (2, config.spec().num_patches, config.spec().width)
    differences(type(model).__name__, "features", features, expected, 1e-5, 1.3e-6)


def test_selected_hidden_state_is_the_one_llava_takes(tmp_path: Path) -> None:
    path, model = checkpoint(tmp_path, "clip")
    values = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected = model(values, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(HfVisionConfig(path=path).build().eval()(values), expected)


def test_cls_can_be_kept(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "clip")
    config = HfVisionConfig(path=path, select_feature="cls_patch")
    assert config.spec().num_patches == 5
    assert config.build()(torch.randn(1, 3, 28, 28)).shape[1] == 5


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (30, 30), (200, 31), (29, 28)])
def test_crop_equals_transformers_clip_processor(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    expected = torch.as_tensor(np.asarray(processor(image)["pixel_values"][0]))
    torch.testing.assert_close(ImageTransform(size_px=28, fit="crop")(image), expected, atol=1e-6, rtol=1e-6)


def test_pad_uses_the_mean_colour_and_centres() -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    square = ImageTransform(size_px=40, fit="pad").square(image)
    assert square.getpixel((5, 2)) == (122, 116, 104)
    assert square.getpixel((20, 20)) == (255, 0, 0)
    assert square.getpixel((20, 8)) == (122, 116, 104)
    assert square.getpixel((20, 12)) == (255, 0, 0)


def test_squash_keeps_everything_and_restore_undoes_normalisation() -> None:
    image = Image.new("RGB", (40, 20), (10, 200, 30))
    transform = ImageTransform(size_px=28, fit="squash")
    values = transform(image)
    assert values.shape == (3, 28, 28)
    assert values.dtype == torch.float32
    assert transform.restore(values).getpixel((3, 3)) == (10, 200, 30)


def test_published_spec_needs_no_file() -> None:
    spec = HfVisionConfig(path="openai/clip-vit-large-patch14-336").spec()
    assert (spec.width, spec.grid, spec.num_patches, spec.item_shape) == (1024, (24, 24), 576, (3, 336, 336))
    assert HfVisionConfig(path="google/siglip-so400m-patch14-384").spec().num_patches == 729


def test_empty_counts_the_blocks_that_run() -> None:
    with torch.device("meta"):
        module = HfVisionConfig(path="openai/clip-vit-large-patch14-336").empty()
    assert sum(p.numel() for p in module.parameters()) == 290_911_232  # 303.5M less the last block


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"path": "./nowhere"}, "encoder"),
        ({"path": "openai/clip-vit-large-patch14", "select_layer": -30}, "encoder.select_layer"),
        ({"path": "openai/clip-vit-large-patch14", "image_size_px": 448}, "encoder.image_size_px"),
    ],
)
def test_mistakes_are_named(settings: dict, where: str) -> None:
    config = HfVisionConfig(**settings)
    with pytest.raises(ConfigError) as caught:
        config.spec()
        config.empty()
    assert caught.value.where == where


def test_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="clip_vision_model"):
        HfVisionConfig(path=str(tmp_path)).spec()


def test_tiny_is_the_same_model_twice() -> None:
    values = torch.randn(1, 3, 28, 28)
    first, second = TinyVisionConfig().build(), TinyVisionConfig().build()
    torch.testing.assert_close(first.eval()(values), second.eval()(values), rtol=0, atol=0)
