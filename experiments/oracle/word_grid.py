"""A perfect eye for the shapes world: what stands in each patch of a picture, in words; for the language part.

    PYTHONPATH=experiments/oracle python -m mmexp.train --config-dir experiments/oracle experiments=shapes_language

A soft token shows everything about a thing at once, while a text has one word at each position. A language model this
small that has only read texts cannot read soft tokens, so it learns from scenes whose patches are sums of word
embeddings. It never sees a picture, nor a feature of the vision part: the connector still has all of its work to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmexp.contracts import EncoderSpec, Medium, Sample, Text, Turn
from mmexp.shapes import Scene, draw_scene
from mmexp.shapes.rows import talk
from mmexp.shapes.scenes import TEXT, Thing
from mmexp.shapes.talk import box_turns, caption, caption_turns, located, question_turns

SIDE = 6
"""Patches in a row and in a column, as in the vision part."""
MOST_WORDS = 8
"""Words of one patch: size, colour, two of a name such as `digit 8`, and four edges."""
LEAST_COVER = 0.22
"""Share of a patch that a thing's box has to cover to be shown by it."""
_TABLES = ("model.embed_tokens.weight", "shared.weight")
"""What the embedding is called in a Llama and in a T5."""
SHARES = {"questions": 50, "boxes": 24, "caption": 10, "detail": 6, "chat": 10}
"""Of the conversations that are neither plain nor about questions or boxes alone, the share of each kind in percent."""
PLAIN = (
    ("Hello!", "Hello! You can ask me about a picture."),
    ("Hi, who are you?", "I am a small language model that knows about coloured shapes."),
    ("Thank you.", "You are welcome."),
    ("What shapes do you know?", "I know the circle, the square, the triangle, the star, the cross and the ring."),
    ("What colours do you know?", "I know red, green, blue, yellow, purple and orange."),
    ("Can you read?", "Yes, I can read single letters and digits."),
    ("What is a caption?", "A caption is one sentence that says what a picture shows."),
    ("What does a bounding box mean?", "It is the left, top, right and bottom edge of an object."),
    ("Goodbye.", "Goodbye!"),
)
"""Talk about nothing in particular."""


def cells(scene: Scene) -> list[str]:
    """What each patch shows, row by row: all facts of the thing that covers most of it, or the background."""
    side = 100 / SIDE
    shown = []
    for index in range(SIDE * SIDE):
        left, top = index % SIDE * side, index // SIDE * side
        covers = []
        for thing in scene.things:
            box_left, box_top, box_right, box_bottom = thing.box
            width = min(box_right, left + side) - max(box_left, left)
            height = min(box_bottom, top + side) - max(box_top, top)
            covers.append(max(width, 0) * max(height, 0) / side**2)
        most = max(range(len(covers)), key=covers.__getitem__)
        shown.append(_facts(scene.things[most]) if covers[most] > LEAST_COVER else f" {scene.background}")
    return shown


def _facts(thing: Thing) -> str:
    edges = zip(("left", "top", "right", "bottom"), thing.box, strict=True)
    return f" {thing.full}" + "".join(f" {side} {value / 100:.2f}" for side, value in edges)


@dataclass(frozen=True, kw_only=True)
class WordGridConfig:
    """Sums of word embeddings, one for each patch, as an encoder."""

    path: str
    """Folder of the language part as it is before training: its tokenizer, and the words as they start."""
    width: int = 128
    """E"""

    def spec(self) -> EncoderSpec:
        return EncoderSpec(width=self.width, grid=(SIDE, SIDE), item_shape=(SIDE * SIDE, MOST_WORDS))

    def transform(self, fit: Any) -> Callable[[Image.Image], Tensor]:
        return WordIds(self.path)

    def build(self) -> WordGrid:
        from safetensors.torch import load_file

        weights = load_file(Path(self.path) / "model.safetensors")
        table = next(weights[name] for name in _TABLES if name in weights)
        return WordGrid(table.float())

    def empty(self) -> WordGrid:
        """The module with random weights on the current default device."""
        from transformers import AutoConfig

        return WordGrid(torch.randn(AutoConfig.from_pretrained(self.path).vocab_size, self.width))


@dataclass(frozen=True)
class WordIds:
    """From the words that a picture carries to int64[P, W], padded with 0."""

    path: str

    def __call__(self, image: Image.Image) -> Tensor:
        ids = torch.zeros(SIDE * SIDE, MOST_WORDS, dtype=torch.int64)
        for row, words in zip(ids, image.info["cells"], strict=True):
            found = _ids(self.path, words)
            row[: len(found)] = torch.tensor(found)
        return ids


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def _ids(path: str, words: str) -> list[int]:
    return _tokenizer(path)(words, add_special_tokens=False).input_ids


class WordGrid(nn.Module):
    """Sums the embeddings of the words of each patch."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag.from_pretrained(table.clone(), freeze=False, mode="sum", padding_idx=0)

    def forward(self, values: Tensor) -> Tensor:
        """int64[M, P, W] -> float[M, P, E]"""
        items, patches, words = values.shape
        return self.words(values.reshape(-1, words).long()).view(items, patches, -1)


@dataclass(frozen=True, kw_only=True)
class OracleScenesConfig:
    """Conversations about scenes that are shown as words."""

    num_scenes: int
    name: str = "oracle_scenes"
    single: bool = False
    """Whether a conversation is one question and its answer, for a language model that writes nothing but the last."""

    def build(self) -> OracleScenes:
        return OracleScenes(self)


@dataclass(frozen=True)
class OracleScenes:
    """Map-style dataset; scene and conversation follow from the index."""

    config: OracleScenesConfig

    def __len__(self) -> int:
        return self.config.num_scenes

    def __getitem__(self, index: int) -> Sample:
        scene = draw_scene(0, TEXT, index)
        rng = scene.rng("text")
        name, said = (single if self.config.single else exchange)(scene, rng, rng.random())
        turns = []
        for number, (question, answer) in enumerate(said):
            shown = [Medium(source=picture(scene)), Text(text="\n")] if number == 0 and name != "plain" else []
            turns.append(Turn(role="user", parts=(*shown, Text(text=question))))
            turns.append(Turn(role="assistant", parts=(Text(text=answer),)))
        return Sample(id=f"{index:06d}-{name}", dataset=self.config.name, turns=tuple(turns))


def exchange(scene: Scene, rng: Random, draw: float) -> tuple[str, list[tuple[str, str]]]:
    """A conversation about the scene and its kind: about half questions, a quarter boxes, and all there is.

    Args:
        draw: What decides about the kind, uniform in [0, 1).
    """
    if draw < 0.02:
        return "plain", rng.sample(PLAIN, 2)
    if draw < 0.48:
        return "questions", question_turns(scene, rng)
    if draw < 0.74:
        return "boxes", box_turns(scene, rng)
    return talk(scene, "text-talk", SHARES)


def single(scene: Scene, rng: Random, draw: float) -> tuple[str, list[tuple[str, str]]]:
    """One question and its answer; or the beginning of a caption, of any length up to half, and the rest of it.

    Args:
        draw: What decides about the kind, uniform in [0, 1).
    """
    if draw < 0.5:
        name, turns = exchange(scene, rng, rng.random())
        return name, [rng.choice(turns)] if turns else caption_turns(scene, rng)
    words = (caption(scene, rng) if rng.random() < 0.7 else located(scene)).split()
    length = 0 if draw < 0.7 else rng.randint(1, max(1, len(words) // 2))
    return "begun", [(" ".join(words[:length]), " ".join(words[length:]))]


def picture(scene: Scene) -> Image.Image:
    """An empty picture that carries the words of its patches."""
    image = Image.new("RGB", (SIDE, SIDE))
    image.info["cells"] = cells(scene)
    return image
