"""Makes checkpoints of the real architectures at small width: CLIP's vision model, and Llama with the real tokenizer.

    python tests/assets/make_checkpoints.py OUT TOKENIZER_FOLDER

The weights are random from a fixed seed; the files are what `save_pretrained` writes, so loading them is loading any
published checkpoint.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch


def make_clip(folder: Path) -> Path:
    """A CLIP vision checkpoint: 112 px, patches of 14, so 64 soft tokens; four blocks of width 96."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=112,
        patch_size=14,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}).save_pretrained(folder)
    return folder


def make_llama(folder: Path, tokenizer: Path) -> Path:
    """A Llama checkpoint with 32,000 tokens, four layers of width 128, and Llama-2's own tokenizer files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=32000,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


if __name__ == "__main__":
    out, source = Path(sys.argv[1]), Path(sys.argv[2])
    print(make_clip(out / "clip"), make_llama(out / "llama", source))
