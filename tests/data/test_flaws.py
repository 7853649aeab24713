"""What a description has wrong, on texts as models write them and on real ones."""

from __future__ import annotations

import json

import pytest

from mmexp.data.flaws import FLAWS, flaws_of
from tests.shared_data import shared

GOOD = (
    "The image shows a man in a red jacket who rides a brown horse along a beach. Behind him, waves break on the sand, "
    'and a sign says "No swimming!" Two gulls fly over the water. The sky is grey.'
)


@pytest.mark.parametrize(
    ("text", "flaws"),
    [
        (GOOD, []),
        ("A caf\u00e9 in M\u00fcnchen, at 7.30 in the morning (before it opens).", []),
        ("It is very, very cold. No! No! A man had had enough of it...", []),
        ("A sandy beach with a hut. A sandy beach is behind it, too.", []),
        ("", ["empty"]),
        (" ... \n", ["empty"]),
        ("A dog lies on a sofa. It sleeps. A dog lies on a sofa.", ["repeated_sentence"]),
        ("A dog lies on a sofa. It sleeps. A DOG lies, on a sofa!", ["repeated_sentence"]),
        ("The man is wearing a a a hat.", ["repeated_words"]),
        ("A man with a red hat with a red hat stands there.", ["repeated_words"]),
        ("Here are cars and cars and cars and more of them.", ["repeated_words"]),
        ("A tree. On the left a tree. " + "Then there is also another small tree near it, "
         * 3 + "and a house.", ["repeated_words"]),
        ("In the middle of the street stands a big blue bus, in the middle of the street stands a big red bus, and in "
         "the middle of the street stands a big green bus.", ["repeated_words"]),
        ("a man on a horse on a beach", ["no_sentence", "unfinished"]),
        ("Beach. Sand. Sea.", ["no_sentence"]),
        ("A man rides a horse. Behind him there is a", ["unfinished"]),
        ("A man rides a horse on the beach \u5728\u6d77\u6ee9\u4e0a.", ["strange_characters"]),
        ("A man rides a horse. ###Human: Continue with it.", ["strange_characters"]),
        ("A man rides <Img> a horse on the beach.", ["strange_characters"]),
        ("A man rides a horse ===== on the beach.", ["strange_characters"]),
        ("A man rid\ufffdes a horse on the beach.", ["strange_characters"]),
        ("A man rides a horse. I'm sorry, I made a mistake in that.", ["apology"]),
        ("I apologize for the confusion. A man rides a horse.", ["apology"]),
        ("As an AI model, I see a man on a horse.", ["apology"]),
    ],
)  # fmt: skip
def test_every_flaw(text: str, flaws: list[str]) -> None:
    assert flaws_of(text) == flaws
    assert set(flaws) <= FLAWS.keys()


def test_the_limit_of_tokens_is_a_flaw_of_its_own() -> None:
    assert flaws_of(GOOD, is_cut=True) == ["cut"]
    assert flaws_of("A man rides a horse. Behind him there is a", is_cut=True) == ["cut", "unfinished"]


def test_real_captions_pass() -> None:
    """Five captions of people, joined: one of 121 says a thing twice in a row."""
    rows = json.loads(shared("annotations", "minigpt4_align.json").read_text(encoding="utf-8"))["annotations"]
    flawed = [row["caption"] for row in rows if flaws_of(row["caption"])]
    assert len(rows) == 121
    assert len(flawed) == 1
    assert "holding a photo of himself holding a photo of himself" in flawed[0]
