"""Tables for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from mmexp.compare import Comparison, compare, csv_text, latex, load_folders, markdown, terminal_tables
from tests.compare.runs import MLP2X, make_run


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    for seed, extra in ((0, 0.0), (1, 1.0)):
        scores = [1.0] * 30 + [extra] * 10
        make_run(tmp_path / f"a{seed}", scores=scores, seed=seed, overrides=["data_path=x&y_1%"])
        make_run(tmp_path / f"b{seed}", scores=[0.0] * 39 + [1.0], seed=seed, config=MLP2X, overrides=["connector=[b]"])
    return compare(load_folders([str(tmp_path)]))


def test_terminal(comparison: Comparison) -> None:
    console = Console(file=io.StringIO(), width=160)
    for part in terminal_tables(comparison):
        console.print(part)
    shown = console.file.getvalue()
    # 0.75 and 1.0: 12.7062 * 0.176777 / sqrt(2)
    for text in ("data_path=x&y_1%", "connector=[b]", "0.875 ± 1.588", "0.025 ± 0.000*", "B - A", "-0.850", "< 0.001",
                 "training (s)", "2,000"):  # fmt: skip
        assert text in shown, text


def test_markdown(comparison: Comparison) -> None:
    lines = markdown(comparison).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "**0.875 ± 1.588**" in rows[2]
    assert "connector=\\[b\\]" in rows[3]


def test_latex(comparison: Comparison) -> None:
    text = latex(comparison)
    for part in ("\\toprule", "\\midrule", "\\bottomrule", "x\\&y\\_1\\%", "\\textbf{0.875} $\\pm$ 1.588",
                 "0.025 $\\pm$ 0.000$^{*}$", "5 \\% (paired bootstrap"):  # fmt: skip
        assert part in text, part
    width = len(re.search(r"tabular}\{(\w+)\}", text)[1])  # type: ignore[index]
    body = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(body) == 4
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body} == {width}


def test_csv_has_every_run(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    assert [row["seed"] for row in rows] == ["0", "1", "0", "1"]
    assert [float(row["heldout/vqa/exact_match"]) for row in rows] == [0.75, 1.0, 0.025, 0.025]
    assert [row["connector.depth"] for row in rows] == ["1", "1", "2", "2"]
    assert {float(row["train_s"]) for row in rows} == {20.0}
