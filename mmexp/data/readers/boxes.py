"""Boxes that stand in a text, as LLaVA writes them, made regions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mmexp.contracts import Part, Region, Text

_SHARE = r"\s*([01]?\.\d+|[01])\s*"
_BOX = re.compile(r"\[" + ",".join([_SHARE] * 4) + r"\]")
_WORD = r"[^\s.,;:!?\[\]]"
_PHRASE = re.compile(rf"{_WORD}(?:[^.,;:!?\n\[\]]*{_WORD})?(?= $)")


def split_boxes(text: str, medium: int, with_phrases: bool) -> Iterator[Part]:
    """A text in parts, with a region for every box `[left, top, right, bottom]`, four shares of the picture.

    Four numbers that are no box (outside of 0 to 1, or without an area) stay text.

    Args:
        medium: Which medium of the conversation the boxes lie in.
        with_phrases: Whether the words between the last punctuation mark and a box, one space in front of it, become
            its phrase: `a cat; red star [0.1, 0.2, 0.3, 0.4]` has the phrase `red star`.
    """
    start = 0
    for match in _BOX.finditer(text):
        left, top, right, bottom = (float(number) for number in match.groups())
        if not (left < right <= 1 and top < bottom <= 1):
            continue
        before = text[start : match.start()]
        words = _PHRASE.search(before) if with_phrases else None
        if kept := before[: words.start()] if words else before:
            yield Text(text=kept)
        yield Region(boxes=((left, top, right, bottom),), phrase=words.group() if words else "", medium=medium)
        start = match.end()
    if start < len(text):
        yield Text(text=text[start:])
