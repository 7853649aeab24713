"""The words that readers put around captions and questions, with where they were published; answers by majority."""

from __future__ import annotations

from collections import Counter
from typing import Any

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
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""Source: Improved Baselines with Visual Instruction Tuning, section 3.2 (response format prompting)."""
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."
"""Source: as `SHORT_ANSWER`, table of response formatting prompts."""


def prompt_for(prompts: tuple[str, ...], number: int) -> str:
    """The instruction of a row: spread evenly without order, and always the same one for the same row."""
    return prompts[(number * 2_654_435_761 >> 7) % len(prompts)]


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


def most_common(answers: list[Any]) -> str:
    """The most frequent answer, the first one of several. Raises DataError when there is none."""
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    counts = Counter(text for text in texts if isinstance(text, str) and text.strip())
    if not counts:
        raise DataError(f"`answers` is {repr(answers)[:60]}", expected="at least one text", fix="leave the row out")
    return counts.most_common(1)[0][0]
