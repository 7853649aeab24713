"""LAVIS's encoders against the published equations and two other implementations, from files with LAVIS's names."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from mmexp.connector import MlpConfig
from mmexp.encoder import LavisVision, LavisVisionConfig
from mmexp.errors import CheckpointError, ConfigError
from mmexp.llm import TinyLlmConfig
from mmexp.model import Branch, MultimodalModel
from mmexp.tuning import LoraSettings, apply_policy
from tests.differences import Differences

E, HEADS, MLP, PATCH = 24, 2, 36, 4
SMALL = {"width": E, "num_blocks": 2, "num_heads": HEADS, "mlp_width": MLP, "patch_size_px": PATCH, "image_size_px": 16}
BLOCK = {
    "eva": {
        "norm1.weight": (E,), "norm1.bias": (E,), "norm2.weight": (E,), "norm2.bias": (E,),
        "attn.q_bias": (E,), "attn.v_bias": (E,), "attn.qkv.weight": (3 * E, E), "attn.proj.weight": (E, E),
        "attn.proj.bias": (E,), "mlp.fc1.weight": (MLP, E), "mlp.fc1.bias": (MLP,), "mlp.fc2.weight": (E, MLP),
        "mlp.fc2.bias": (E,),
    },
    "clip": {
        "ln_1.weight": (E,), "ln_1.bias": (E,), "ln_2.weight": (E,), "ln_2.bias": (E,),
        "attn.in_proj_weight": (3 * E, E), "attn.in_proj_bias": (3 * E,), "attn.out_proj.weight": (E, E),
        "attn.out_proj.bias": (E,), "mlp.c_fc.weight": (MLP, E), "mlp.c_fc.bias": (MLP,),
        "mlp.c_proj.weight": (E, MLP), "mlp.c_proj.bias": (E,),
    },
}  # fmt: skip
STEM = {
    "eva": {
        "cls_token": (1, 1, E), "pos_embed": (1, 17, E), "patch_embed.proj.weight": (E, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (E,), "norm.weight": (E,), "norm.bias": (E,), "head.weight": (5, E), "head.bias": (5,),
    },
    "clip": {
        "class_embedding": (E,), "positional_embedding": (17, E), "conv1.weight": (E, 3, PATCH, PATCH),
        "ln_pre.weight": (E,), "ln_pre.bias": (E,), "ln_post.weight": (E,), "ln_post.bias": (E,), "proj": (E, 8),
    },
}  # fmt: skip
PREFIX = {"eva": "blocks", "clip": "transformer.resblocks"}


def published(family: str, num_blocks: int = 3) -> dict[str, torch.Tensor]:
    """Random tensors under the names of the published file, which has one block more than the recipe runs."""
    torch.manual_seed(0)
    shapes = dict(STEM[family])
    for index in range(num_blocks):
        shapes |= {f"{PREFIX[family]}.{index}.{name}": shape for name, shape in BLOCK[family].items()}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def saved(folder: Path, state: dict, name: str = "vit.pth") -> str:
    torch.save(state, folder / name)
    return str(folder / name)


def norm(values: torch.Tensor, state: dict, name: str, eps: float) -> torch.Tensor:
    return functional.layer_norm(values, (E,), state[f"{name}.weight"], state[f"{name}.bias"], eps)


def eva_equations(state: dict, picture: torch.Tensor) -> torch.Tensor:
    """float[3, 16, 16] to float[17, E], written from the reference's table: one head at a time, softmax by hand."""
    patches = [
        torch.einsum("echw,chw->e", state["patch_embed.proj.weight"], picture[:, y : y + PATCH, x : x + PATCH])
        for y in range(0, 16, PATCH)
        for x in range(0, 16, PATCH)
    ]
    x = torch.stack([state["cls_token"][0, 0], *(p + state["patch_embed.proj.bias"] for p in patches)])
    x = x + state["pos_embed"][0]
    for index in range(2):
        b = f"blocks.{index}"
        h = norm(x, state, f"{b}.norm1", 1e-6)
        wq, wk, wv = state[f"{b}.attn.qkv.weight"].split(E)
        q, k, v = h @ wq.T + state[f"{b}.attn.q_bias"], h @ wk.T, h @ wv.T + state[f"{b}.attn.v_bias"]
        heads = []
        for head in range(HEADS):
            s = slice(head * E // HEADS, (head + 1) * E // HEADS)
            heads.append(torch.softmax(q[:, s] @ k[:, s].T * (E // HEADS) ** -0.5, dim=1) @ v[:, s])
        x = x + torch.cat(heads, 1) @ state[f"{b}.attn.proj.weight"].T + state[f"{b}.attn.proj.bias"]
        h = norm(x, state, f"{b}.norm2", 1e-6) @ state[f"{b}.mlp.fc1.weight"].T + state[f"{b}.mlp.fc1.bias"]
        h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
        x = x + h @ state[f"{b}.mlp.fc2.weight"].T + state[f"{b}.mlp.fc2.bias"]
    return x


@torch.no_grad()
def test_eva_equals_the_published_equations(tmp_path: Path, differences: Differences) -> None:
    state = published("eva")
    module = LavisVisionConfig(path=saved(tmp_path, state), **SMALL).build()
    values = torch.randn(2, 3, 16, 16)
    expected = torch.stack([eva_equations(state, picture) for picture in values])
    differences("EVA-g blocks", "equations", module.vit(values), expected, 1e-5, 1e-5)
    normed = functional.layer_norm(expected, (E,), eps=1e-5)
    differences("EVA-g blocks", "with ln_vision", module(values), normed, 1e-5, 1e-5)


@torch.no_grad()
def test_eva_equals_timm(tmp_path: Path, differences: Differences) -> None:
    from timm.models.eva import Eva

    state = published("eva")
    eps = partial(torch.nn.LayerNorm, eps=1e-6)
    other = Eva(16, PATCH, 3, 0, "", E, 2, HEADS, mlp_ratio=MLP / E, norm_layer=eps).eval()
    other.load_state_dict(state, strict=False)
    values = torch.randn(2, 3, 16, 16)
    expected = other.forward_intermediates(values, [1], return_prefix_tokens=True, output_fmt="NLC")[1][0]
    module = LavisVisionConfig(path=saved(tmp_path, state), **SMALL).build()
    differences("EVA-g blocks", "timm's Eva", module.vit(values), torch.cat(expected[::-1], 1), 1e-5, 1e-5)


@torch.no_grad()
def test_clip_equals_open_clip(tmp_path: Path, differences: Differences) -> None:
    from open_clip.transformer import QuickGELU, VisionTransformer

    state = published("clip")
    other = VisionTransformer(16, PATCH, E, 3, HEADS, MLP / E, output_dim=8, act_layer=QuickGELU).eval()
    other.load_state_dict(state)
    values = torch.randn(2, 3, 16, 16)
    expected = other.transformer.resblocks[:2]
    hidden = other._embeds(values)
    for block in expected:
        hidden = block(hidden)
    module = LavisVisionConfig(path=saved(tmp_path, state), family="clip", **SMALL).build()
    differences("LAVIS's CLIP blocks", "open_clip's", module.vit(values), hidden, 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("family", "name", "corners"), [("eva", "pos_embed", False), ("clip", "positional_embedding", True)]
)
def test_positions_are_resized_as_published(tmp_path: Path, family: str, name: str, corners: bool) -> None:
    state = published(family)
    config = LavisVisionConfig(path=saved(tmp_path, state), family=family, **{**SMALL, "image_size_px": 32})
    own = config.build().vit.state_dict()[name].view(-1, E)
    table = state[name].view(-1, E)
    maps = table[1:].reshape(1, 4, 4, E).permute(0, 3, 1, 2)
    expected = functional.interpolate(maps, (8, 8), mode="bicubic", align_corners=corners).permute(0, 2, 3, 1)
    torch.testing.assert_close(own, torch.cat([table[:1], expected.flatten(0, 2)]), atol=1e-6, rtol=1e-6)
    fixed = LavisVisionConfig(path=config.path, family=family, resize_positions=False, **{**SMALL, "image_size_px": 32})
    with pytest.raises(CheckpointError, match="image_size_px=16"):
        fixed.build()


def test_a_whole_model_gives_its_vision_transformer_and_ln_vision(tmp_path: Path) -> None:
    state = published("eva", num_blocks=2)
    whole = {f"visual_encoder.{name}": tensor for name, tensor in state.items()}
    whole |= {"ln_vision.weight": torch.full((E,), 2.0), "ln_vision.bias": torch.ones(E), "Qformer.x": torch.ones(1)}
    path = saved(tmp_path, {"model": whole, "epoch": 3, "optimizer": {"state": {}}})
    fresh = LavisVisionConfig(path=path, **SMALL).build()
    assert torch.equal(fresh.ln_vision.weight, torch.ones(E))
    loaded = LavisVisionConfig(path=path, ln_vision_path=path, **SMALL).build()
    assert torch.equal(loaded.ln_vision.weight, torch.full((E,), 2.0))
    assert torch.equal(loaded.vit.state_dict()["cls_token"], state["cls_token"])
    assert loaded.ln_vision.eps == 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.q_bias"), "1 missing: blocks.1.attn.q_bias"),
        (lambda s: s.update({"blocks.0.attn.k_bias": torch.ones(E)}), "nothing here takes: blocks.0.attn.k_bias"),
        (lambda s: s.update({"blocks.0.norm1.bias": torch.ones(3)}), "of another shape: blocks.0.norm1.bias"),
        (lambda s: s.pop("pos_embed"), "no pos_embed"),
        (lambda s: s.update({"pos_embed": torch.ones(1, 16, E)}), "16 rows"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change, message: str) -> None:
    state = published("eva")
    change(state)
    with pytest.raises(CheckpointError, match=message):
        LavisVisionConfig(path=saved(tmp_path, state), **SMALL).build()


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file: eva_vit_g"):
        LavisVisionConfig(path="eva_vit_g.pth", **SMALL).build()
    (tmp_path / "x.pth").write_bytes(b"not a file of torch")
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        LavisVisionConfig(path=str(tmp_path / "x.pth"), **SMALL).build()
    torch.save({"a": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="plain tensors"):
        LavisVisionConfig(path=str(tmp_path / "code.pth"), **SMALL).build()


@pytest.mark.parametrize(("size", "tokens"), [(224, 257), (364, 677), (448, 1025)])
def test_published_sizes(size: int, tokens: int) -> None:
    config = LavisVisionConfig(path="eva_vit_g.pth", image_size_px=size)
    assert (config.spec().num_patches, config.spec().width) == (tokens, 1408)
    assert config.transform("squash").size_px == size
    if size == 224:
        with torch.device("meta"):
            module = config.empty()
        assert sum(p.numel() for p in module.vit.parameters()) == 985_894_528
        assert module.vit.blocks[38].attn.num_heads == 16
        assert len(module.vit.blocks) == 39


@pytest.mark.parametrize("family", ["eva", "clip"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_only_linear_and_convolution_weights_are_stored_in_16_bit(tmp_path: Path, family: str, dtype: str) -> None:
    path = saved(tmp_path, published(family))
    half = LavisVisionConfig(path=path, family=family, dtype=dtype, **SMALL).build()
    short = {name.split(".")[-2:][0] for name, p in half.named_parameters() if p.dtype == getattr(torch, dtype)}
    assert short == {"eva": {"proj", "qkv", "fc1", "fc2"}, "clip": {"conv1", "out_proj", "c_fc", "c_proj"}}[family]
    values = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features = half(values)
        exact = LavisVisionConfig(path=path, family=family, **SMALL).build()(values)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, exact, atol=0.1, rtol=0.1)


def test_cls_can_be_dropped(tmp_path: Path) -> None:
    path = saved(tmp_path, published("eva"))
    kept, dropped = (LavisVisionConfig(path=path, select_feature=s, **SMALL) for s in ("cls_patch", "patch"))
    values = torch.randn(1, 3, 16, 16)
    assert (dropped.spec().num_patches, dropped.spec().num_prefix, kept.spec().num_prefix) == (16, 0, 1)
    torch.testing.assert_close(dropped.build()(values), kept.build()(values)[:, 1:])


def test_a_policy_may_train_ln_vision_alone() -> None:
    config = LavisVisionConfig(path="none", from_scratch=True, **SMALL)
    branch = Branch(config.build(), MlpConfig(depth=1).build(config.spec(), 32), config.spec())
    model = MultimodalModel(TinyLlmConfig().build(), {"image": branch})
    policy = {"encoder": {"vit": "frozen", "ln_vision": "full"}, "connector": "frozen", "llm": "frozen"}
    encoder = apply_policy(model, policy, LoraSettings())["encoder"]
    assert isinstance(encoder, LavisVision)
    branch(torch.randn(1, 3, 16, 16)).square().sum().backward()
    assert encoder.ln_vision.weight.grad is not None
    assert all(p.grad is None for p in encoder.vit.parameters())


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"image_size_px": 18}, "encoder.image_size_px"),
        ({"image_size_px": 0}, "encoder.image_size_px"),
        ({"num_heads": 5}, "encoder.num_heads"),
        ({"num_blocks": 0}, "encoder.num_blocks"),
        ({"family": "vit"}, "encoder.family"),
    ],
)
def test_mistakes_are_named(settings: dict, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LavisVisionConfig(path="x", **{**SMALL, **settings}).spec()
    assert caught.value.where == where
