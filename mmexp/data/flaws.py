"""What a generated description can have wrong that its text alone gives away.

Source: MiniGPT-4 (Zhu et al. 2023), section 3.2: repeated words and sentences, fragments, text that is no English, and
apologies, which its authors filter by fixed rules. The rules themselves are ours.
"""

from __future__ import annotations

import re
from itertools import pairwise

FLAWS = {
    "empty": "no words",
    "cut": "as long as the limit of new tokens, so it was cut",
    "repeated_sentence": "a sentence stands there twice",
    "repeated_words": "a word or phrase over and over",
    "no_sentence": "no whole sentence",
    "unfinished": "the last sentence has no end",
    "strange_characters": "letters of no Latin alphabet, marks of the prompt, or runs of signs",
    "apology": "the model speaks of itself instead of the picture",
}
"""Every flaw that `flaws_of` finds, and its meaning."""

_SENTENCE = re.compile(r"[^.!?]+[.!?]+[\"')\]\u201d\u2019]*(?=\s|$)")
_ENDED = re.compile(r"[.!?][\"')\]\u201d\u2019]*$")
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_STRANGE = re.compile(
    "\ufffd|[\u0000-\u0008\u000b-\u001f]|</?img>|###|\\[/?inst\\]|<<sys>>|</?s>|([^\\w\\s.])\\1{3,}|\\.{4,}",
    re.IGNORECASE,
)
_LATIN_END = 0x250
_APOLOGY = re.compile(
    r"\b(i['\u2019]?m|i am|we['\u2019]?re) (very |so )?sorry\b|\bi (do )?apologi[sz]e\b|\bmy apologies\b"
    r"|\bi (have )?made a mistake\b|\bas an ai\b",
    re.IGNORECASE,
)
_LEAST_WORDS = 3
"""Words of a sentence."""
_ANY_PHRASE = range(1, 13)
"""Numbers of words that may not follow each other three times."""
_LONG_PHRASE = range(_LEAST_WORDS, 13)
"""Numbers of words that may not stand twice in a row in one sentence."""
_SCATTERED = (7, 3)
"""So many words in a row may not be found so many times, wherever they stand."""


def flaws_of(text: str, is_cut: bool = False) -> list[str]:
    """The names of the text's flaws, in the order of `FLAWS`; none for a text that may be kept.

    Args:
        text: A description in English.
        is_cut: Whether the model was stopped by its limit of new tokens.
    """
    text = text.strip()
    words = [word.lower() for word in _WORD.findall(text)]
    if not words:
        return ["empty"]
    sentences = [_WORD.findall(part.lower()) for part in _SENTENCE.findall(text)]
    pieces = [_WORD.findall(part.lower()) for part in re.split(r"[.!?]", text)]
    found = {
        "cut": is_cut,
        "repeated_sentence": _repeats_sentence(sentences),
        "repeated_words": _repeats_phrase(words, _ANY_PHRASE, 3)
        or any(_repeats_phrase(piece, _LONG_PHRASE, 2) for piece in pieces)
        or _comes_back(words),
        "no_sentence": not any(len(sentence) >= _LEAST_WORDS for sentence in sentences),
        "unfinished": not _ENDED.search(text),
        "strange_characters": bool(_STRANGE.search(text)) or any(c.isalpha() and ord(c) >= _LATIN_END for c in text),
        "apology": bool(_APOLOGY.search(text)),
    }
    return [name for name in FLAWS if found.get(name)]


def _repeats_sentence(sentences: list[list[str]]) -> bool:
    """Short exclamations may come back."""
    whole = [tuple(sentence) for sentence in sentences if len(sentence) >= _LEAST_WORDS]
    return len(set(whole)) < len(whole)


def _repeats_phrase(words: list[str], lengths: range, times: int) -> bool:
    """Whether some words of one of these lengths follow each other so many times."""
    for length in lengths:
        same = 0
        for before, behind in zip(words, words[length:], strict=False):
            same = same + 1 if before == behind else 0
            if same == length * (times - 1):
                return True
    return False


def _comes_back(words: list[str]) -> bool:
    length, times = _SCATTERED
    runs = sorted(tuple(words[start : start + length]) for start in range(len(words) - length + 1))
    in_a_row = 1
    for before, behind in pairwise(runs):
        in_a_row = in_a_row + 1 if before == behind else 1
        if in_a_row == times:
            return True
    return False
