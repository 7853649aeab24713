"""Writes the vision part of the shapes world as it is before training: a small vision transformer in CLIP's format.

    python experiments/start_vision.py OUT

Small vision transformers learn slowly from little data when attention starts as noise. So each patch starts by looking
around itself: positions are 2-D sinusoids at the scale of the patches, queries equal keys, and what attention adds is
opposite to what it reads (Trockman and Kolter 2023, Mimetic Initialization of Self-Attention Layers, section 4).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

WIDTH, HEADS, LAYERS, SIZE_PX, PATCH_PX = 128, 4, 5, 72, 12
POSITION_SCALE, QUERY_KEY_SCALE, VALUE_OUTPUT_SCALE, NOISE = 0.4, 0.7, 0.5, 0.02


def build(seed: int = 0) -> CLIPVisionModel:
    """The model with its initial weights."""
    torch.manual_seed(seed)
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            image_size=SIZE_PX,
            patch_size=PATCH_PX,
            hidden_act="gelu",
            projection_dim=WIDTH,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("position_embedding.weight"):
                parameter[1:] = sinusoids(SIZE_PX // PATCH_PX, WIDTH) * POSITION_SCALE
        for module in model.modules():
            if hasattr(module, "q_proj"):
                mimic(module)
    return model


def sinusoids(side: int, width: int) -> torch.Tensor:
    """float[side * side, width]: sines and cosines of column and row, wave lengths growing from 1 to 10."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequencies = 10.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = [place.reshape(-1, 1) * frequencies for place in (columns, rows)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)


def mimic(attention: Any) -> None:
    """Queries equal keys, and values times output is minus a share of the identity, both up to noise."""

    def near(weight: torch.Tensor) -> torch.Tensor:
        return weight + torch.randn_like(weight) * NOISE

    head = WIDTH // HEADS
    shared = torch.cat([torch.linalg.qr(torch.randn(WIDTH, head))[0].T for _ in range(HEADS)]) * QUERY_KEY_SCALE
    values = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0] * VALUE_OUTPUT_SCALE**0.5
    attention.q_proj.weight.copy_(near(shared))
    attention.k_proj.weight.copy_(near(shared))
    attention.v_proj.weight.copy_(near(values))
    attention.out_proj.weight.copy_(near(-values.T))


def main(out: str) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json to `out`."""
    build().save_pretrained(out)
    card = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIZE_PX},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIZE_PX, "width": SIZE_PX},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
    }
    (Path(out) / "preprocessor_config.json").write_text(json.dumps(card, indent=2) + "\n", encoding="ascii")


if __name__ == "__main__":
    main(sys.argv[1])
