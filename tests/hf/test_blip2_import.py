"""Files of LAVIS and MiniGPT-4 as the start of a stage, and Qwen-VL's vision side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmexp.connector import ConcatLinearConfig, QformerConfig, ResamplerConfig
from mmexp.contracts import EncoderSpec
from mmexp.encoder import LavisVisionConfig
from mmexp.errors import CheckpointError
from mmexp.hf import load_foreign
from mmexp.hf.blip2 import ours_to_lavis
from mmexp.hf.qwen_vl import by_projection, qwen_vl_names

E, W = 24, 16


def parts(variant: Any, llm_width: int = 0, seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    encoder = LavisVisionConfig(path="", from_scratch=True, width=E, num_blocks=2, num_heads=2, mlp_width=36,
                                patch_size_px=4, image_size_px=16)  # fmt: skip
    connector = QformerConfig(variant=variant, num_queries=4, width=W, num_layers=2, num_heads=2, ffn_width=32,
                              vocab_size=40, max_text_tokens=20)  # fmt: skip
    made: dict[str, nn.Module] = {
        "encoder": encoder.build(),
        "connector": connector.build(encoder.spec(), llm_width),
        "llm": nn.Linear(2, 2),
    }
    for part in made.values():
        for parameter in part.parameters():
            nn.init.normal_(parameter)
    return made


def file_of(made: dict[str, nn.Module], path: Path, only: tuple[str, ...] = (), **more: torch.Tensor) -> Path:
    """A checkpoint as LAVIS's runner writes it."""
    state = ours_to_lavis({name: made[name].state_dict() for name in ("encoder", "connector")}, "t5")
    state = {name: tensor for name, tensor in state.items() if not only or name.startswith(only)} | more
    torch.save({"model": state, "optimizer": {"lr": 1.0}, "epoch": 3}, path)
    return path


def same(one: nn.Module, other: nn.Module, prefix: str) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine if name.startswith(prefix))


def test_a_first_stage_file_fills_a_stripped_qformer(tmp_path: Path) -> None:
    published = parts("full", seed=1)
    buffers = {
        "Qformer.bert.embeddings.position_ids": torch.arange(20),
        "Qformer.cls.predictions.decoder.weight": torch.zeros(40, W),
        "Qformer.cls.predictions.decoder.bias": torch.zeros(40),
        "temp": torch.tensor(0.07),
        "itm_head.weight": torch.zeros(2, W),
        "itm_head.bias": torch.zeros(2),
    }
    file = file_of(published, tmp_path / "stage1.pth", ("Qformer", "query_tokens", "ln_vision"), **buffers)
    mine = parts("stripped", llm_width=8)
    before = mine["connector"].state_dict()["proj.weight"].clone()
    vit = mine["encoder"].state_dict()["vit.cls_token"].clone()
    changed = load_foreign(mine, file)
    assert same(mine["connector"], published["connector"], "qformer.")
    assert same(mine["encoder"], published["encoder"], "ln_vision.")
    assert torch.equal(mine["connector"].state_dict()["proj.weight"], before)
    assert torch.equal(mine["encoder"].state_dict()["vit.cls_token"], vit)
    assert changed["encoder"] == {"ln_vision.weight", "ln_vision.bias"}


def test_a_second_stage_file_and_minigpt4_s_projection_follow_each_other(tmp_path: Path) -> None:
    second = parts("stripped", llm_width=8, seed=2)
    mine = parts("stripped", llm_width=8)
    load_foreign(mine, file_of(second, tmp_path / "stage2.pth"))
    assert all(same(mine[name], second[name], "") for name in ("encoder", "connector"))
    llama = {"llama_proj.weight": torch.ones(8, W), "llama_proj.bias": torch.ones(8),
             "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}  # fmt: skip
    torch.save({"model": llama}, tmp_path / "minigpt4.pth")
    assert load_foreign(mine, tmp_path / "minigpt4.pth") == {"connector": {"proj.weight", "proj.bias"}}
    assert torch.equal(mine["connector"].state_dict()["proj.weight"], torch.ones(8, W))
    assert same(mine["connector"], second["connector"], "qformer.")


def test_minigpt4_with_llama2_brings_its_projection(tmp_path: Path) -> None:
    """No Q-Former there; `ln_vision` is frozen, so the file does not have it either."""
    encoder = EncoderSpec(width=6, grid=(4, 4), num_prefix=1)
    mine: dict[str, Any] = {"connector": ConcatLinearConfig().build(encoder, 8)}
    llama = {"llama_proj.weight": torch.full((8, 24), 0.5), "llama_proj.bias": torch.ones(8),
             "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}  # fmt: skip
    torch.save({"model": llama}, tmp_path / "llama2.pth")
    assert load_foreign(mine, tmp_path / "llama2.pth") == {"connector": {"proj.weight", "proj.bias"}}
    assert torch.equal(mine["connector"].proj.weight, llama["llama_proj.weight"])
    torch.save({"model": llama | {"llama_proj.weight": torch.ones(8, W)}}, tmp_path / "vicuna.pth")
    with pytest.raises(CheckpointError, match=rf"proj\.weight is \(8, {W}\), here \(8, 24\)"):
        load_foreign(mine, tmp_path / "vicuna.pth")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    stripped = file_of(parts("stripped", llm_width=8), tmp_path / "stripped.pth")
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight is missing"):
        load_foreign(parts("text", llm_width=0), stripped)
    torch.save({"model": {"llama_proj.weight": torch.ones(9, W), "llama_proj.bias": torch.ones(9)}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"proj\.weight is \(9, 16\), here \(8, 16\)"):
        load_foreign(parts("stripped", llm_width=8), tmp_path / "w.pth")
    lora = {"llama_proj.bias": torch.ones(8), "llama_model.base_model.model.q_proj.lora_A.weight": torch.ones(2, 2)}
    torch.save({"model": lora}, tmp_path / "v2.pth")
    with pytest.raises(CheckpointError, match="LoRA"):
        load_foreign(parts("stripped", llm_width=8), tmp_path / "v2.pth")


def test_heads_land_where_an_objective_has_them(tmp_path: Path) -> None:
    heads = nn.ModuleDict({"itm_head": nn.Linear(W, 2)})
    state = {"query_tokens": torch.ones(1, 4, W), "itm_head.weight": torch.ones(2, W), "itm_head.bias": torch.ones(2)}
    published = parts("text", seed=3)
    file = file_of(published, tmp_path / "itm.pth", ("Qformer", "query_tokens"), **state)
    mine = {**parts("text"), "objective": heads}
    assert load_foreign(mine, file)["objective"] == {"itm_head.weight", "itm_head.bias"}
    assert torch.equal(heads["itm_head"].weight, torch.ones(2, W))


@torch.no_grad()
def test_qwen_vl_s_resampler_and_vision_transformer(tmp_path: Path) -> None:
    import open_clip

    from mmexp.encoder.open_clip import OpenClipVision

    def tower() -> OpenClipVision:
        visual = open_clip.CLIP(
            8,
            {"image_size": 28, "layers": 2, "width": E, "head_width": 12, "patch_size": 7, "mlp_ratio": 1.5},
            {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
        ).visual
        vision = OpenClipVision(visual, (4, 4), 2, False)
        vision.remove_class_token()
        return vision

    spec = EncoderSpec(width=E, grid=(4, 4))
    first, second = tower(), tower()
    sampler = ResamplerConfig(num_queries=4, num_heads=2)
    one, two = sampler.build(spec, 16), sampler.build(spec, 16)
    state: dict[str, torch.Tensor] = {"transformer.wte.weight": torch.ones(2, 2)}
    for name, tensor in first.state_dict().items():
        their_name = name.removeprefix("visual.").replace("in_proj_weight", "in_proj.weight")
        their_name = their_name.replace("in_proj_bias", "in_proj.bias")
        if "in_proj" in name:  # by head: query, key and value of each
            tensor = by_head(tensor)
        state[f"transformer.visual.{their_name}"] = tensor
    for name, tensor in one.state_dict().items():
        prefix = "" if name.startswith("ln_post") or name == "proj" else "attn_pool."
        state[f"transformer.visual.{prefix}{name}"] = tensor
    torch.save(state, tmp_path / "qwen.bin")
    changed = load_foreign({"encoder": second, "connector": two}, tmp_path / "qwen.bin")
    assert changed["connector"] == set(one.state_dict())
    values = torch.randn(1, 3, 28, 28)
    torch.testing.assert_close(two(second(values)), one(first(values)))
    assert qwen_vl_names("transformer.h.0.ln_1.weight") is None


def by_head(tensor: torch.Tensor) -> torch.Tensor:
    """All queries, keys, values of two heads as query, key, value of each head."""
    rows = [part.chunk(2) for part in tensor.chunk(3)]
    mixed = torch.cat([rows[kind][head] for head in range(2) for kind in range(3)])
    assert torch.equal(by_projection(mixed, 2), tensor)
    return mixed
