"""Small data sets and a processor on the tiny tokenizer."""

from __future__ import annotations

import torch
from PIL import Image

from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.llm import TinyLlmConfig
from mmexp.prompt import ChatTemplate, Processor, SegmentTokenizer


def transform(image):
    return torch.full((3, 2, 2), float(image.size[0]))


def make_processor(max_length_tokens: int = 60) -> Processor:
    return Processor(
        template=ChatTemplate(name="t", user="{turn}|"),
        tokenizer=SegmentTokenizer(TinyLlmConfig().load_tokenizer()),
        slot_lengths={"image": 4},
        transforms={"image": transform},
        max_length_tokens=max_length_tokens,
    )


def make_sample(name: str, answer: str = "yes", widths: tuple[int, ...] = ()) -> Sample:
    media = tuple(Medium(source=Image.new("RGB", (width, 1))) for width in widths)
    user = Turn(role="user", parts=(*media, Text(text=f"q{name}")))
    return Sample(id=name, dataset="demo", turns=(user, Turn(role="assistant", parts=(Text(text=answer),))))


class Samples(list):
    """A list is a data set."""


def mixed(count: int) -> Samples:
    return Samples(make_sample(str(n), "yes" * (n % 3 + 1), tuple(range(1, n % 3 + 1))) for n in range(count))
