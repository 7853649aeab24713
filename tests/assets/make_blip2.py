"""Makes a BLIP-2 checkpoint as `save_pretrained` writes it: ViT, Q-Former and OPT at small width, random weights.

python tests/assets/make_blip2.py OUT TOKENIZER_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

NUM_QUERIES = 8
ENCODER = {"width": 48, "num_blocks": 2, "num_heads": 4, "mlp_width": 96, "image_size_px": 56}
QFORMER = {"num_queries": NUM_QUERIES, "width": 32, "num_layers": 2, "num_heads": 2, "ffn_width": 64}
LLM = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
PARTS = [
    *(f"encoder.{name}={value}" for name, value in ENCODER.items()),
    *(f"connector.{name}={value}" for name, value in QFORMER.items()),
]
"""What a command line says of it; a published checkpoint has the defaults."""


def make_blip2(folder: Path, tokenizer: Path, text: Any = None) -> Path:
    """A folder that the Auto classes of transformers load.

    Args:
        folder: To write.
        tokenizer: Folder of the LLM's tokenizer.
        text: Config of the LLM; None for an OPT with the vocabulary of the published ones.
    """
    import transformers as t

    torch.manual_seed(0)
    words = t.AutoTokenizer.from_pretrained(str(tokenizer))
    text = text or t.OPTConfig(**LLM, vocab_size=50272, max_position_embeddings=512, init_std=0.1, dropout=0.0)
    config = t.Blip2Config(
        vision_config={
            "hidden_size": ENCODER["width"],
            "intermediate_size": ENCODER["mlp_width"],
            "num_hidden_layers": ENCODER["num_blocks"],
            "num_attention_heads": ENCODER["num_heads"],
            "image_size": ENCODER["image_size_px"],
            "patch_size": 14,
        },
        qformer_config={
            "hidden_size": QFORMER["width"],
            "intermediate_size": QFORMER["ffn_width"],
            "num_hidden_layers": QFORMER["num_layers"],
            "num_attention_heads": QFORMER["num_heads"],
        },
        text_config=text.to_dict(),
        num_query_tokens=NUM_QUERIES,
        image_token_index=len(words),
    )
    model: Any = t.Blip2ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if (
            name.startswith(("vision_model.", "query_tokens", "qformer.", "language_projection."))
            and "norm" not in name
        ):
            torch.nn.init.normal_(parameter, std=0.25)
        if name.endswith("self_attn.qkv.bias"):
            parameter.data.chunk(3)[1].zero_()  # EVA's keys have no bias
    model.save_pretrained(folder)
    side = {"height": ENCODER["image_size_px"], "width": ENCODER["image_size_px"]}
    t.Blip2Processor(t.BlipImageProcessor(size=side), words, num_query_tokens=NUM_QUERIES).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(make_blip2(Path(sys.argv[1]), Path(sys.argv[2])))
