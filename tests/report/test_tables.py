"""Terminal tables, and the choice of samples."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmexp.report import Piece, plan_table, results_table, token_view
from mmexp.report.samples import pick


def _text(value: Table | Text) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(value)
    return console.file.getvalue()


def test_results_table() -> None:
    metrics = {"exact_match": 0.9, "blind": 0.4, "majority": 0.35, "exact_match/colour": 1.0, "num_samples": 50}
    captions = {"cider_d": 2.0, "bleu_4": 0.25}
    shown = _text(results_table({"held[red]": {"vqa": metrics, "caption": captions}}))
    for expected in ("held[red]", "exact_match", "0.900", "0.400", "0.350", "+0.500", "50", "bleu_4", "0.250"):
        assert expected in shown
    assert "colour" not in shown


def test_plan_table() -> None:
    rows = [{"part": "[b]llm", "num_parameters": 7_000_000}, {"part": "connector", "lr": 2e-5, "trains": True}]
    shown = _text(plan_table(rows, "plan"))
    for expected in ("[b]llm", "num parameters", "7,000,000", "2e-05", "yes"):
        assert expected in shown


def test_token_view() -> None:
    pieces = [Piece(text="USER: [bold]"), Piece(slot="image", length=576), Piece(text="cat", supervised=True)]
    view = token_view(pieces)
    assert view.plain == "USER: [bold][image x576]cat"
    styles = {view.plain[span.start : span.end]: str(span.style) for span in view.spans}
    assert styles == {"[image x576]": "dim", "cat": "bold green"}


@pytest.mark.parametrize(
    ("num_right", "num_wrong", "expected"), [(50, 50, (3, 3)), (98, 2, (4, 2)), (1, 9, (1, 5)), (2, 0, (2, 0))]
)
def test_right_and_wrong_are_balanced(num_right: int, num_wrong: int, expected: tuple[int, int]) -> None:
    lines = [{"id": n, "score": float(n < num_right), "type": "ab"[n % 2]} for n in range(num_right + num_wrong)]
    chosen = pick(lines, 6)
    assert (sum(c["score"] == 1 for c in chosen), sum(c["score"] == 0 for c in chosen)) == expected
    assert len({c["id"] for c in chosen}) == len(chosen)
    if num_right > 5:
        assert {c["type"] for c in chosen if c["score"] == 1} == {"a", "b"}


def test_graded_samples_go_from_best_to_worst() -> None:
    chosen = pick([{"score": n / 10} for n in range(31)], 4)
    assert [c["score"] for c in chosen] == [3.0, 2.0, 1.0, 0.0]
