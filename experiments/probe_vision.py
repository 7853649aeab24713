"""What the features of a vision part say about a thing: colour, name, size and box, read by a small network from the
patch at its centre.

    python experiments/probe_vision.py [FOLDER]

FOLDER is a checkpoint in CLIP's format; without it, the part that ships. The features are those that LLaVA takes.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.nn import functional

from mmexp.config import parts_dir
from mmexp.encoder import HfVisionConfig
from mmexp.shapes import draw_scene
from mmexp.shapes.glyphs import GLYPHS
from mmexp.shapes.render import draw_image
from mmexp.shapes.scenes import COLOURS, SHAPES

SPLIT, SCENES, LEARN, EPOCHS = "vision_probe", 3000, 2400, 25
NAMES = (*SHAPES, *GLYPHS)


def features(path: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features float[T, E] of all things, their values float[T, 7], and which ones the probe learns from."""
    config = HfVisionConfig(path=path)
    encoder, transform, grid = config.build().eval(), config.transform("squash"), config.spec().grid
    rows, values, learn = [], [], []
    for start in range(0, SCENES, 100):
        scenes = [draw_scene(0, SPLIT, index) for index in range(start, start + 100)]
        with torch.inference_mode():
            found = encoder(torch.stack([transform(draw_image(scene)) for scene in scenes]))
        for patches, scene in zip(found, scenes, strict=True):
            for thing in scene.things:
                column, row = (int(value / 100 * side) for value, side in zip(thing.centre, grid, strict=True))
                rows.append(patches[row * grid[1] + column])
                labels = (COLOURS.index(thing.colour), NAMES.index(thing.name), thing.size == "large")
                values.append([*map(float, labels), *(edge / 100 for edge in thing.box)])
                learn.append(scene.index < LEARN)
    return torch.stack(rows), torch.tensor(values), torch.tensor(learn)


def read(rows: torch.Tensor, values: torch.Tensor, learn: torch.Tensor) -> dict[str, float]:
    """Trains the probe on some things and tests it on the others."""
    torch.manual_seed(0)
    rows = (rows - rows[learn].mean(0)) / rows[learn].std(0)
    sizes = [len(COLOURS), len(NAMES), 2, 4]
    probe = nn.Sequential(nn.Linear(rows.shape[1], 256), nn.GELU(), nn.Linear(256, sum(sizes)))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.88)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(int(learn.sum())).split(256):
            batch, wanted = rows[learn][chosen], values[learn][chosen]
            *words, box = probe(batch).split(sizes, 1)
            loss = 20 * functional.smooth_l1_loss(box, wanted[:, 3:], beta=0.05)
            loss = loss + sum(functional.cross_entropy(word, wanted[:, n].long()) for n, word in enumerate(words))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        *words, box = probe(rows[~learn]).split(sizes, 1)
    wanted = values[~learn]
    right = [float((word.argmax(1) == wanted[:, n]).float().mean()) for n, word in enumerate(words)]
    overlap = iou(box, wanted[:, 3:])
    return dict(zip(("colour", "name", "size"), right, strict=True)) | {
        "box, IoU at least 0.5": float((overlap >= 0.5).float().mean()),
        "mean error of an edge": float((box - wanted[:, 3:]).abs().mean()),
    }


def iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes float[T, 4], row by row."""
    sides = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp(min=0)
    common = sides.prod(1)
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(1) for box in (one, other)]
    return common / (areas[0] + areas[1] - common)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| what | value |\n|---|---|")
    for name, value in read(*features(sys.argv[1] if len(sys.argv) > 1 else f"{parts_dir()}/vision")).items():
        print(f"| {name} | {value:.3f} |")
