"""One LLaVA in both frameworks, with the same weights and the same samples, for `step_time.py`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import nn

from mmexp.connector import MlpConfig
from mmexp.contracts import IGNORE, EncoderSpec, Item, MediaRun
from mmexp.data import Collator
from mmexp.encoder.hf_vision import HfVision
from mmexp.llm.causal import empty_llm
from mmexp.model import Branch, MultimodalModel
from mmexp.objective import NextToken
from mmexp.tuning import store_frozen

OURS, THEIRS, RECOMPUTED = "mmexp", "transformers", "transformers, LLM computed again"
ABLATIONS = {
    OURS: ("shared", {}),
    "every text with a picture of its own": ("flat", {}),
    "and all supervised logits at once": ("flat", {"chunk_rows": None}),
    "and the whole last layer": ("flat", {"chunk_rows": None, "prune_last_layer": False}),
    "and padded rows": ("padded", {"chunk_rows": None, "prune_last_layer": False}),
}


@dataclass(frozen=True)
class Shape:
    """Layers, widths and vocabulary of a CLIP encoder and a Llama."""

    vision_layers: int
    vision_width: int
    layers: int
    width: int
    vocabulary: int
    image_px: int = 224
    patch_px: int = 16
    head_width: int = 64
    """Of an attention head of the LLM."""

    @property
    def slots(self) -> int:
        """Soft tokens of a picture."""
        return (self.image_px // self.patch_px) ** 2

    @property
    def vision(self) -> transformers.CLIPVisionConfig:
        """The encoder's config."""
        return transformers.CLIPVisionConfig(
            hidden_size=self.vision_width, intermediate_size=4 * self.vision_width, image_size=self.image_px,
            patch_size=self.patch_px, num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_width // 64,
        )  # fmt: skip

    @property
    def text(self) -> transformers.LlamaConfig:
        """The LLM's config."""
        return transformers.LlamaConfig(
            hidden_size=self.width, intermediate_size=round(self.width * 2.6875), num_hidden_layers=self.layers,
            num_attention_heads=self.width // self.head_width, vocab_size=self.vocabulary, max_position_embeddings=2048,
            pad_token_id=0,
        )  # fmt: skip


SHAPES = {
    "small": Shape(vision_layers=12, vision_width=384, layers=8, width=512, vocabulary=32_000),
    "7B-shaped": Shape(vision_layers=2, vision_width=192, layers=8, width=512, vocabulary=1_024),
}
"""`7B-shaped`: head and encoder have 2 and 4 % of the LLM's weights, as in LLaVA-1.5-7B."""
TRAINED = {1: ("connector",), 2: ("connector", "llm")}


def make_items(shape: Shape, stage: int, count: int, seed: int = 0, texts: int = 1, mixed: bool = False) -> list[Item]:
    """Samples of one stage; with `texts` above 1, so many captions for each of `count` pictures in either stage.

    Stage 1: a picture and a caption of 8 to 32 tokens; `mixed`, with detailed ones among them, log-normal with median
    40 (sigma 0.9, at most 250). Stage 2: words of a conversation log-normal with median 100
    tokens (sigma 1.1, at most 800), half of them answers in one to four turns; every eighth row is text alone. Padded,
    8 of them waste 35 %, as LLaVA-1.5's mixture does with 16 rows (36 %, `packing.md`).
    """
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    items = []
    if texts > 1:
        for index in range(count):
            own = [
                make_item(shape, draw.randint(8, 32), 1, True, True, f"s{index}.{n}", generator) for n in range(texts)
            ]
            items += [replace(item, media=own[0].media) for item in own]
        return items
    for index in range(count):
        if stage == 1:
            words = min(250, max(8, round(40 * math.exp(draw.gauss(0, 0.9))))) if mixed else draw.randint(8, 32)
        else:
            words = min(800, max(16, round(100 * math.exp(draw.gauss(0, 1.1)))))
        turns = 1 if stage == 1 else draw.randint(1, 4)
        has_picture = stage == 1 or index % 8 != 7
        items.append(make_item(shape, words, turns, has_picture, stage == 1, f"s{index}", generator))
    return items


def make_item(
    shape: Shape,
    words: int,
    turns: int,
    has_picture: bool,
    all_supervised: bool,
    name: str,
    generator: torch.Generator,
    num_slots: int | None = None,
) -> Item:
    """A start token, a picture perhaps, and `words` tokens in turns whose second halves are answers.

    The picture takes `num_slots` places; None stands for one a patch.
    """
    text = torch.randint(3, shape.vocabulary - 1, (words,), generator=generator)
    place = torch.arange(words) % max(2, words // turns)
    answers = place >= max(2, words // turns) // 2
    labels = text if all_supervised else text.masked_fill(~answers, IGNORE)
    slots = (num_slots or shape.slots) if has_picture else 0
    side = shape.image_px
    head, blank = torch.tensor([1]), torch.zeros(slots, dtype=torch.long)
    return Item(
        id=name,
        dataset="",
        input_ids=torch.cat([head, blank, text]),
        labels=torch.cat([torch.full((1 + slots,), IGNORE), labels]),
        runs=(MediaRun(modality="image", start=1, length=slots),) if slots else (),
        media={"image": (torch.randn(3, side, side, generator=generator),)} if slots else {},
    )


def padded(shape: Shape, items: list[Item]) -> dict[str, torch.Tensor]:
    """What transformers' model takes: rows padded on the right."""
    ids = [item.input_ids.clone() for item in items]
    for own, item in zip(ids, items, strict=True):
        for run in item.runs:
            own[run.start : run.start + run.length] = shape.vocabulary - 1
    pad, pixels = nn.utils.rnn.pad_sequence, [value for item in items for value in item.media.get("image", ())]
    return {
        "input_ids": pad(ids, True, 0),
        "attention_mask": pad([torch.ones_like(own) for own in ids], True, 0),
        "labels": pad([item.labels for item in items], True, IGNORE),
    } | ({"pixel_values": torch.stack(pixels)} if pixels else {})


def build_theirs(shape: Shape) -> transformers.LlavaForConditionalGeneration:
    """LLaVA-1.5 with random weights."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=shape.vision, text_config=shape.text, image_token_index=shape.vocabulary - 1
    )
    return transformers.LlavaForConditionalGeneration(config)


def build_ours(shape: Shape) -> MultimodalModel:
    """The same architecture with random weights."""
    torch.manual_seed(0)
    encoder = transformers.CLIPVisionModel(shape.vision)
    side, grid = shape.image_px, shape.image_px // shape.patch_px
    spec = EncoderSpec(width=shape.vision_width, grid=(grid, grid), item_shape=(3, side, side))
    branch = Branch(
        HfVision(encoder, shape.vision_layers - 1, drop=1), MlpConfig(depth=2).build(spec, shape.width), spec
    )
    return MultimodalModel(empty_llm(shape.text), {"image": branch})


def counterparts(
    ours: MultimodalModel, theirs: transformers.LlavaForConditionalGeneration
) -> list[tuple[nn.Module, nn.Module]]:
    """Modules that hold the same weights."""
    branch = ours.inputs["image"]
    connector, projector = branch.connector, theirs.model.multi_modal_projector
    return [
        (branch.encoder.model, theirs.model.vision_tower),
        (connector[0], projector.linear_1),
        (connector[2], projector.linear_2),
        (ours.llm.model.get_decoder(), theirs.model.language_model),
        (ours.llm.model.lm_head, theirs.lm_head),
    ]


def freeze(model: nn.Module, stage: int) -> None:
    """Opens what the stage trains, in either framework."""
    for name, weight in model.named_parameters():
        kind = "connector" if "connector" in name or "projector" in name else "encoder" if "vision" in name else "llm"
        kind = "encoder" if ".encoder." in name and "connector" not in name else kind
        weight.requires_grad_(kind in TRAINED[stage])


def make_loss(
    name: str, model: nn.Module, shape: Shape, items: list[Item], low: bool, device: str = "cpu"
) -> Callable[[], torch.Tensor]:
    """The mean loss of a variant (`THEIRS`, `RECOMPUTED`, or one of `ABLATIONS`) on some samples.

    `RECOMPUTED` is `THEIRS` with gradient checkpointing of the LLM, as LLaVA's scripts train in both stages.
    """
    if name in (THEIRS, RECOMPUTED):
        batch = {key: value.to(device) for key, value in padded(shape, items).items()}

        def forward() -> torch.Tensor:
            language_model: Any = model.model.language_model
            language_model.activation_checkpointing_disable()
            if name == RECOMPUTED:
                language_model.activation_checkpointing_enable()
            return model(**batch, use_cache=False).loss
    else:
        row, settings = ABLATIONS[name]
        mine = Collator(pad_id=0, row=row)(items).to(torch.device(device))
        objective = NextToken(**settings)
        if low:
            store_frozen({"model": model}, torch.bfloat16, {})

        def forward() -> torch.Tensor:
            losses = objective(model, mine)
            return losses.sums["lm"] / losses.counts["lm"]

    def loss() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=low):
            return forward()

    return loss


class Step:
    """One optimizer step: forward, backward, fused AdamW over what trains."""

    def __init__(self, model: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
        self.loss = loss
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
