"""Captions: COCO's two lists, LAVIS rows, and MiniGPT-4's `filter_cap.json`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mmexp.contracts import Sample
from mmexp.data.files import SteadyFile
from mmexp.data.readers.parts import exchange, others, picture, words
from mmexp.data.readers.rows import RowsConfig, row_id
from mmexp.data.sources import Row, iterate_under
from mmexp.errors import DataError

BRIEF_PROMPTS = (
    "Describe the image concisely.",
    "Provide a brief description of the given image.",
    "Offer a succinct explanation of the picture presented.",
    "Summarize the visual content of the image.",
    "Give a short and clear explanation of the subsequent image.",
    "Share a concise interpretation of the image provided.",
    "Present a compact description of the photo's key features.",
    "Relay a brief, clear account of the picture shown.",
    "Render a clear and concise summary of the photo.",
    "Write a terse but informative summary of the picture.",
    "Create a compact narrative representing the image presented.",
)
"""Source: Visual Instruction Tuning, appendix, instructions for brief image description."""
DETAILED_PROMPTS = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)
"""Source: Vision-CAIR/MiniGPT-4 @ d94738a7 prompts/alignment.txt."""


def prompt_for(prompts: tuple[str, ...], number: int) -> str:
    """The instruction of a row: spread evenly without order, and always the same one for the same row."""
    return prompts[(number * 2_654_435_761 >> 7) % len(prompts)]


@dataclass(frozen=True, kw_only=True)
class LavisCaptionsConfig(RowsConfig):
    """LAVIS rows of `image` and `caption`; a list of captions gives the first, the others stay in `Sample.meta`."""

    prompts: tuple[str, ...] = BRIEF_PROMPTS
    """Instructions that the rows take in turn; a template of captions alone leaves them out."""

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        found = row.get("caption")
        all_captions = {"captions": found} if isinstance(found, list) else {}
        caption = words({"caption": found[0]} if isinstance(found, list) and found else row, "caption")
        turns = exchange(prompt_for(self.prompts, number), caption, picture(row.get("image")))
        meta = {**others(row, "id", "caption", "image"), **all_captions}
        return Sample(id=row_id(row, number), turns=turns, meta=meta)


@dataclass(frozen=True, kw_only=True)
class CocoCaptionsConfig(RowsConfig):
    """COCO's captions file: a row for each entry of `annotations`, with the file name from `images`.

    Source: COCO data format, https://cocodataset.org/#format-data.
    """

    packed: ClassVar[bool] = True

    prompts: tuple[str, ...] = BRIEF_PROMPTS
    """Instructions that the rows take in turn; a template of captions alone leaves them out."""

    def read(self, file: SteadyFile) -> Iterator[Row]:
        names = image_names(file)
        for row in iterate_under(file, "annotations"):
            if isinstance(row.value, dict):
                row.value["file_name"] = names.get(row.value.get("image_id"))
            yield row

    def parse(self, row: dict[str, Any], number: int) -> Sample:
        if row.get("file_name") is None:
            raise DataError(f"no picture of `image_id` {row.get('image_id')!r}", expected="an entry of `images`")
        turns = exchange(prompt_for(self.prompts, number), words(row, "caption"), picture(row["file_name"], "file_name"))
        return Sample(id=row_id(row, number), turns=turns, meta=others(row, "id", "caption", "file_name"))


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


def image_names(file: SteadyFile) -> dict[Any, str]:
    """File names by id, from the list `images`. Raises DataError for an entry without one, and for an id twice."""
    names: dict[Any, str] = {}
    for row in iterate_under(file, "images"):
        entry = row.value if isinstance(row.value, dict) else {}
        if not isinstance(entry.get("id"), int | str) or not isinstance(entry.get("file_name"), str):
            expected = "{id, file_name, ...}"
            raise DataError(f"an image is {repr(row.value)[:80]}", expected=expected, where=f"{file.path}:{row.line}")
        if entry["id"] in names:
            raise DataError(f"the image id {entry['id']!r} twice", where=f"{file.path}:{row.line}")
        names[entry["id"]] = entry["file_name"]
    return names


def named_image(pattern: str, row: dict[str, Any], key: str) -> str:
    """The picture's file name by a pattern such as `{image_id:012d}.jpg`. Raises DataError when it does not fit."""
    value = row.get(key)
    if value is None:
        raise DataError(f"no `{key}`", expected=f"a value for {pattern}")
    try:
        return pattern.format(**{key: value})
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"`{key}` is {value!r}, which does not fit {pattern!r} ({error})",
            expected=f"a pattern of {{{key}}}",
            fix="set data.image_name",
        ) from error
