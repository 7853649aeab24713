"""Caption metrics against scores of the published code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import fmean

import pytest

from mmexp.evaluation.caption import bleu, cider_d, rouge_l, tokenize

ROOT = Path(__file__).resolve().parents[2]
METRICS = Path(os.environ.get("MMEXP_SHARED", ROOT.parent / "shared")) / "data" / "metrics" / "caption"

needs_scores = pytest.mark.skipif(not METRICS.is_dir(), reason="no reference scores; set MMEXP_SHARED to their folder")


def _load(name: str) -> object:
    return json.loads((METRICS / name).read_text(encoding="utf-8"))


@needs_scores
def test_plain_words_agree_with_nlgeval() -> None:
    """Same words, so only rounding may differ: 1e-5."""
    lines = [(METRICS / f"nlgeval_{name}.txt").read_text().splitlines() for name in ("hyp", "ref1", "ref2")]
    candidates = [line.split() for line in lines[0]]
    references = [[one.split(), two.split()] for one, two in zip(lines[1], lines[2], strict=True)]
    expected = _load("nlgeval_scores.json")["published"]
    for order in (1, 2, 3, 4):
        assert bleu(candidates, references, order) == pytest.approx(expected[f"Bleu_{order}"], abs=1e-5)
    rouge = fmean(rouge_l(c, r) for c, r in zip(candidates, references, strict=True))
    assert rouge == pytest.approx(expected["ROUGE_L"], abs=1e-5)
    assert fmean(cider_d(candidates, references)) == pytest.approx(expected["CIDEr"], abs=1e-5)


@needs_scores
def test_real_captions_agree_with_the_coco_code() -> None:
    """126 pictures through our own tokeniser: 1e-4 on corpus figures, 1e-3 on CIDEr-D of every picture."""
    texts = {row["image_id"]: row["caption"] for row in _load("fakecap_candidates.json")}
    groups: dict[int, list[str]] = {image: [] for image in texts}
    for row in _load("fakecap_references.json")["annotations"]:
        groups[row["image_id"]].append(row["caption"])
    candidates = [tokenize(text) for text in texts.values()]
    references = [[tokenize(text) for text in groups[image]] for image in texts]
    scores = _load("fakecap_scores.json")
    ours = cider_d(candidates, references)
    worst = max((abs(v - scores["CIDEr_per_image"][str(i)]), i) for v, i in zip(ours, texts, strict=True))
    assert worst[0] < 1e-3, worst
    assert fmean(ours) == pytest.approx(scores["corpus"]["CIDEr"], abs=1e-4)
    assert bleu(candidates, references) == pytest.approx(scores["corpus"]["Bleu_4"], abs=1e-4)
    rouge = fmean(rouge_l(c, r) for c, r in zip(candidates, references, strict=True))
    assert rouge == pytest.approx(scores["corpus"]["ROUGE_L"], abs=1e-4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's well-worn hat, isn't it?", ["a", "man", "'s", "well-worn", "hat", "is", "n't", "it"]),
        ("He can't; they're 3.5 m away...", ["he", "ca", "n't", "they", "'re", "3.5", "m", "away"]),
        ('"Stop" (red) - and the U.S. flag.', ["stop", "red", "and", "the", "u.s.", "flag"]),
        ("", []),
    ],
)
def test_tokenize(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


def test_perfect_and_empty_candidates() -> None:
    references = [[["a", "red", "circle", "on", "white"]], [["two", "blue", "squares", "on", "black"]]]
    same = [group[0] for group in references]
    assert cider_d(same, references) == pytest.approx([10.0, 10.0], rel=0.2)
    assert bleu(same, references) == pytest.approx(1.0)
    assert rouge_l(same[0], references[0]) == pytest.approx(1.0)
    assert cider_d([[], []], references) == [0.0, 0.0]
    assert bleu([[], []], references) == pytest.approx(0.0, abs=1e-6)
    assert rouge_l([], references[0]) == 0.0
