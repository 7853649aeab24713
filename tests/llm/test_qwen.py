"""Qwen-7B's own layout against a forward pass written from its description, with nothing of Qwen2 in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from mmexp.errors import CheckpointError, ConfigError
from mmexp.llm import CausalConfig, QwenConfig, Sampling, TinyLlmConfig
from tests.differences import Differences

WIDTH, HEADS, LAYERS, INNER, VOCAB = 32, 4, 2, 24, 259
RAW = {
    "model_type": "qwen", "hidden_size": WIDTH, "intermediate_size": 2 * INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "kv_channels": WIDTH // HEADS, "vocab_size": VOCAB, "seq_length": 64,
    "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "rotary_pct": 1.0, "no_bias": True, "use_dynamic_ntk": True,
    "use_logn_attn": True, "tie_word_embeddings": False, "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
}  # fmt: skip


def tensors() -> dict[str, Tensor]:
    """A random checkpoint under the published names."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (VOCAB, WIDTH), "lm_head.weight": (VOCAB, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {
            f"transformer.h.{layer}.{name}": shape
            for name, shape in {
                "attn.c_attn.weight": (3 * WIDTH, WIDTH), "attn.c_attn.bias": (3 * WIDTH,),
                "attn.c_proj.weight": (WIDTH, WIDTH), "mlp.w1.weight": (INNER, WIDTH), "mlp.w2.weight": (INNER, WIDTH),
                "mlp.c_proj.weight": (WIDTH, INNER), "ln_1.weight": (WIDTH,), "ln_2.weight": (WIDTH,),
            }.items()
        }  # fmt: skip
    shapes["transformer.ln_f.weight"] = (WIDTH,)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


@pytest.fixture(scope="module", params=["safetensors", "bin"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint on disk in two shards."""
    out = tmp_path_factory.mktemp("qwen")
    (out / "config.json").write_text(json.dumps(RAW))
    weights = tensors() | {"transformer.rotary_emb.inv_freq": torch.ones(4)}
    names = sorted(weights)
    stem, place = ("model", {}) if request.param == "safetensors" else ("pytorch_model", {})
    for shard, part in enumerate((names[:9], names[9:]), start=1):
        file = f"{stem}-0000{shard}-of-00002.{request.param}"
        chosen = {name: weights[name] for name in part}
        (save_file if request.param == "safetensors" else torch.save)(chosen, out / file)
        place |= dict.fromkeys(part, file)
    (out / f"{stem}.{request.param}.index.json").write_text(json.dumps({"weight_map": place}))
    TinyLlmConfig().load_tokenizer().save_pretrained(out)
    return out


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def turned(x: Tensor) -> Tensor:
    """Rotary positions: the first half of a head's width with the second."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] / 10000 ** (torch.arange(half) / half)
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], dim=-1)


def logits(ids: Tensor, w: dict[str, Tensor]) -> Tensor:
    """int64[T] to float[T, V]."""
    x = w["transformer.wte.weight"][ids]
    ahead = torch.ones(len(ids), len(ids)).triu(1).bool()
    for layer in range(LAYERS):
        h = {name.split(".", 3)[3]: tensor for name, tensor in w.items() if name.startswith(f"transformer.h.{layer}.")}
        mixed = norm(x, h["ln_1.weight"]) @ h["attn.c_attn.weight"].T + h["attn.c_attn.bias"]
        q, k, v = (part.unflatten(1, (HEADS, -1)).transpose(0, 1) for part in mixed.split(WIDTH, dim=1))
        scores = turned(q) @ turned(k).transpose(1, 2) * (WIDTH // HEADS) ** -0.5
        seen = scores.masked_fill(ahead, float("-inf")).softmax(-1) @ v
        x = x + seen.transpose(0, 1).flatten(1) @ h["attn.c_proj.weight"].T
        y = norm(x, h["ln_2.weight"])
        x = x + ((y @ h["mlp.w1.weight"].T) * functional.silu(y @ h["mlp.w2.weight"].T)) @ h["mlp.c_proj.weight"].T
    return norm(x, w["transformer.ln_f.weight"]) @ w["lm_head.weight"].T


def test_logits_equal_those_of_the_published_computation(differences: Differences, folder: Path) -> None:
    llm = QwenConfig(path=str(folder)).build().eval()
    ids = torch.randint(3, VOCAB, (1, 19), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(11), torch.arange(8)])[None]
    with torch.no_grad():
        ours = llm.logits(llm.hidden(llm.embed(ids), positions, ((11, 8),)))[0]
    expected = torch.cat([logits(part, tensors()) for part in ids[0].split([11, 8])])
    differences("Qwen-7B", "logits", ours, expected, 1e-4, 1e-4)


def test_answers_follow_the_published_computation(differences: Differences, folder: Path) -> None:
    config = QwenConfig(path=str(folder))
    llm, tokenizer = config.build().eval(), config.load_tokenizer()
    ids = torch.tensor(tokenizer("hello").input_ids)
    said = ids
    for _ in range(8):
        said = torch.cat([said, logits(said, tensors())[-1].argmax()[None]])
    embeds, mask = llm.embed(ids[None]).detach(), torch.ones(1, len(ids), dtype=torch.long)
    answer = llm.generate(embeds, mask, tokenizer, Sampling(max_new_tokens=8, stop_ids=(VOCAB,)))[0]
    expected = tokenizer.decode(said[len(ids) :], skip_special_tokens=True).strip()
    differences.tokens("Qwen-7B", "greedy answer", answer, expected)


def test_published_plan_needs_no_file() -> None:
    config = QwenConfig(path="Qwen/Qwen-7B")
    assert (config.spec().width, config.spec().vocab_size, config.spec().max_length_tokens) == (4096, 151936, 8192)
    with torch.device("meta"):
        assert sum(p.numel() for p in config.empty().parameters()) == 7_721_324_544


def test_what_is_missing_or_of_another_kind_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    weights = tensors()
    del weights["transformer.h.1.mlp.w2.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.gate_proj"):
        QwenConfig(path=str(tmp_path)).build()
    with pytest.raises(ConfigError, match="model_type 'qwen'"):
        CausalConfig(path=str(tmp_path)).spec()
    (tmp_path / "config.json").write_text(json.dumps(RAW | {"no_bias": False}))
    with pytest.raises(ConfigError, match="no_bias"):
        QwenConfig(path=str(tmp_path)).spec()
    (tmp_path / "config.json").write_text(json.dumps({**RAW, "model_type": "llama"}))
    with pytest.raises(ConfigError, match="model_type 'llama'"):
        QwenConfig(path=str(tmp_path)).spec()
