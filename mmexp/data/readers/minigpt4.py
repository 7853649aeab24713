"""MiniGPT-4's `filter_cap.json`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmexp.contracts import Sample
from mmexp.data.files import SteadyFile
from mmexp.data.readers.parts import exchange, others, picture, words
from mmexp.data.readers.prompts import DETAILED_PROMPTS, named_image, prompt_for
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.data.sources import Row, iterate_under


@dataclass(frozen=True, kw_only=True)
class MiniGpt4CaptionsConfig(RowsConfig):
    """MiniGPT-4's stage 2 file: `annotations` of `image_id` and `caption`, pictures in `image/ID.jpg`.

    Source: Vision-CAIR/MiniGPT-4 @ d94738a7 minigpt4/datasets/datasets/cc_sbu_dataset.py.
    """

    prompts: tuple[str, ...] = DETAILED_PROMPTS
    """Instructions that the rows take in turn."""
    image_name: str = "image/{image_id}.jpg"
    """File of a picture under the image folder; an `image` in the row goes before it."""

    def read(self, file: SteadyFile) -> Iterator[Row]:
        return iterate_under(file, "annotations")

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        image = row.get("image") or named_image(self.image_name, row, "image_id")
        turns = exchange(prompt_for(self.prompts, number), words(row, "caption"), picture(image))
        return Sample(id=row_id(row, number, "image_id"), turns=turns, meta=others(row, "image_id", "caption", "image"))
