"""The words that readers put around captions and questions, with where they were published; answers by majority."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from mmexp.data.readers.parts import is_key
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
_FULL_SCORE = 3


def under_letters(options: Sequence[str]) -> list[str]:
    """A line for each option, `A. salt`, as LLaVA asks ScienceQA and MMBench."""
    return [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]


def prompt_for(prompts: tuple[str, ...], number: int) -> str:
    """The instruction of a row: spread evenly without order, and always the same one for the same row."""
    return prompts[(number * 2_654_435_761 >> 7) % len(prompts)]


def named_image(pattern: str, row: dict[str, Any], key: str) -> str:
    """The picture's file name by a pattern such as `{image_id:012d}.jpg`. Raises DataError when it does not fit."""
    value = row.get(key)
    if value is None:
        raise DataError(f"no `{key}`", expected=f"a value for {pattern}")
    return fill(pattern, {key: value})


def fill(pattern: str, values: dict[str, Any]) -> str:
    """A file name by a pattern and what stands in the row. Raises DataError when they do not fit."""
    try:
        if odd := next((key for key, value in values.items() if not is_key(value)), None):
            raise TypeError(f"`{odd}` is neither a number nor a text")
        return pattern.format(**values)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        found = ", ".join(f"`{key}` is {repr(value)[:60]}" for key, value in values.items())
        raise DataError(
            f"{found}, which does not fit {pattern!r} ({error})",
            expected="a pattern of " + ", ".join(f"{{{key}}}" for key in values),
            fix="set data.image_name",
        ) from error


def accepted(answers: Any, learnt: str) -> list[str]:
    """The answers that count as right: the learnt one first, then every other one that three people gave.

    Source: Antol et al. 2015, section 3: an answer scores in full when at least three annotators gave it.
    """
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    counts = Counter(text for text in texts if isinstance(text, str) and text != learnt)
    return [learnt, *(text for text, count in counts.items() if count >= _FULL_SCORE)]


def most_common(answers: list[Any]) -> str:
    """The most frequent answer, the first one of several. Raises DataError when there is none."""
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    counts = Counter(text for text in texts if isinstance(text, str) and text.strip())
    if not counts:
        raise DataError(f"`answers` is {repr(answers)[:60]}", expected="at least one text", fix="leave the row out")
    return counts.most_common(1)[0][0]
