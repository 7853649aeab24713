"""Qwen's first generation (Qwen-7B), whose code is not in transformers, as the Qwen2 architecture that it equals.

Both are RMSNorm, rotary positions in halves, biases on queries, keys and values alone, and a gated SiLU. Only names and
shapes of the files differ: queries, keys and values lie in one matrix, and `w1` is the plain and `w2` the gated input.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmexp import hub
from mmexp.errors import CheckpointError, ConfigError
from mmexp.llm.causal import CausalLlm, empty_llm
from mmexp.llm.checkpoint import LlmCheckpoint, spec_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Qwen2Config

    from mmexp.contracts import LlmSpec

_NAMES = {
    "ln_1.weight": "input_layernorm.weight",
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "ln_2.weight": "post_attention_layernorm.weight",
    "mlp.w1.weight": "mlp.up_proj.weight",
    "mlp.w2.weight": "mlp.gate_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
}
_OUTER = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


@dataclass(frozen=True, kw_only=True)
class QwenConfig(LlmCheckpoint):
    """A checkpoint in Qwen-7B's layout by hub id or local folder; no code of it is run.

    The published tokenizer is code too, so `tokenizer` has to name one with the same vocabulary and a tokenizer.json.
    What Qwen does beyond its training length (NTK-scaled rotary positions, log-n attention) is left out, so
    `seq_length` is the longest sequence.
    """

    def spec(self) -> LlmSpec:
        return spec_of(self._config())

    def build(self) -> CausalLlm:
        if self.from_scratch:
            return self.empty()
        config = self._config()
        with torch.device("meta"):
            llm = empty_llm(config, getattr(torch, self.dtype))
        tensors = {
            name: tensor.to(getattr(torch, self.dtype))
            for source, tensor in _tensors(self._folder())
            for name, tensor in renamed(source, tensor).items()
        }
        try:
            llm.model.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise CheckpointError(" ".join(lines[:3])[:300], expected="the tensors of Qwen-7B's layout",
                                  where="llm.path") from error  # fmt: skip
        _fill_buffers(llm, config)
        return llm

    def empty(self) -> CausalLlm:
        """The module with random weights on the current default device."""
        return empty_llm(self._config(), getattr(torch, self.dtype))

    def _config(self) -> Qwen2Config:
        raw = hub.read_config(self.path, self.revision, "llm")
        if raw.get("model_type") != "qwen":
            raise ConfigError(f"model_type {raw.get('model_type')!r}", expected="'qwen', the layout of Qwen-7B",
                              where="llm.path", fix="llm._target_=mmexp.llm.CausalConfig")  # fmt: skip
        return qwen2_config(raw)

    def _folder(self) -> Path:
        source = hub.resolve(self.path, "llm")
        if hub.is_local(source):
            return Path(source)
        from huggingface_hub import snapshot_download

        try:
            wanted = ["*.safetensors", "*.bin", "*.json"]
            return Path(snapshot_download(source, revision=self.revision, allow_patterns=wanted))
        except (OSError, ValueError) as error:
            raise hub.unavailable(source, error, "llm", CheckpointError) from error


def qwen2_config(raw: Mapping[str, Any]) -> Qwen2Config:
    """The Qwen2 architecture that a config.json of Qwen-7B describes.

    Raises:
        ConfigError: it describes something that Qwen2 has no name for.
    """
    from transformers import Qwen2Config

    for key, usual in (("no_bias", True), ("rotary_pct", 1.0)):
        if raw.get(key, usual) != usual:
            raise ConfigError(f"{key}={raw[key]}", expected=f"{usual}, as in Qwen-7B", where="llm.path")
    heads = raw["num_attention_heads"]
    if raw.get("kv_channels", raw["hidden_size"] // heads) * heads != raw["hidden_size"]:
        raise ConfigError(f"kv_channels={raw['kv_channels']}", expected="hidden_size / heads", where="llm.path")
    return Qwen2Config(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"] // 2,  # counts both inputs of the gate
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=raw["seq_length"],
        rms_norm_eps=raw["layer_norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": float(raw.get("rotary_emb_base", 10000))},
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        initializer_range=raw.get("initializer_range", 0.02),
    )


def renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of a Qwen-7B file under its names in Qwen2; empty for a buffer.

    Raises:
        CheckpointError: the layout has no such tensor.
    """
    if name in _OUTER:
        return {_OUTER[name]: tensor}
    if name.startswith("transformer.h."):
        number, _, rest = name.removeprefix("transformer.h.").partition(".")
        layer = f"model.layers.{number}."
        if rest in _NAMES:
            return {layer + _NAMES[rest]: tensor}
        if rest in ("attn.c_attn.weight", "attn.c_attn.bias"):
            kind = rest.rsplit(".", 1)[1]
            parts = zip("qkv", tensor.chunk(3), strict=True)
            return {f"{layer}self_attn.{part}_proj.{kind}": piece.contiguous() for part, piece in parts}
    if name.endswith(_BUFFERS) or name.startswith("transformer.visual."):  # Qwen-VL's own encoder is another part
        return {}
    raise CheckpointError(f"a tensor {name}", expected="the tensors of Qwen-7B's layout", where="llm.path")


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint's files, safetensors before pickles.

    Raises:
        CheckpointError: there are none, or a listed file is missing.
    """
    from safetensors.torch import load_file

    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        names = [f"{stem}.{suffix}"]
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        elif not (folder / names[0]).is_file():
            continue
        for name in names:
            if not (folder / name).is_file():
                raise CheckpointError(f"no {name}, which {index.name} lists", where=str(folder))
            file = folder / name
            yield from (load_file(file) if suffix == "safetensors" else torch.load(file, weights_only=True)).items()
        return
    raise CheckpointError("no weights", expected="model*.safetensors or pytorch_model*.bin", where=str(folder))


def _fill_buffers(llm: CausalLlm, config: Qwen2Config) -> None:
    """Gives the rotary frequencies, which no file holds, their values."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    llm.model.model.rotary_emb = Qwen2RotaryEmbedding(config)
