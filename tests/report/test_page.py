"""The HTML report, from run directories that are complete, half done and empty."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmexp.page import load_run
from mmexp.report import write_report
from mmexp.report.page import chat_command

EVIL = '<script>alert("x")</script>&'
VOID = {"meta", "img", "line", "rect", "circle", "polyline"}


class Strict(HTMLParser):
    """Fails on unbalanced tags; collects tags, text and what an attribute would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for key, value in attrs if key in ("src", "href", "action", "data")]
        assert not any(key.startswith("on") for key, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run whose every string is hostile."""
    folder = tmp_path / "outputs" / "llava15" / "instruct" / "r1"
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 90, 120)).save(images / f"{number}.png")
    lines = [
        {
            "id": f"{number}{EVIL}",
            "prompt": f"Where is it? {EVIL}",
            "prediction": f"there {EVIL}",
            "target": f"here {EVIL}",
            "score": float(number < 9),
            "type": EVIL,
            "image": f"data/images/{number}.png",
            "blind": EVIL,
            "boxes": {"target": [0.1, 0.2, 0.5, 0.6], "predicted": [0.15, 0.2, 0.5, 0.6]},
        }
        for number in range(12)
    ]
    _jsonl(folder / "predictions" / "held_refer.jsonl", lines)
    metrics = {"accuracy_iou50": 0.75, "blind": 0.25, "majority": 0.1, "mean_iou": 0.5}
    metrics |= {f"accuracy_iou50/{EVIL}": 0.5, f"blind/{EVIL}": 0.25, "num_samples": 12}
    (folder / "results.json").write_text(json.dumps({"held": {"refer": metrics}, EVIL: {EVIL: metrics}}))
    steps = [{"step": s, "train/loss": 3 / s, f"lr/{EVIL}": 1e-3, "data/tokens_per_s": 9000.0} for s in range(1, 400)]
    _jsonl(folder / "metrics.jsonl", steps)
    manifest = {"status": "finished", "name": "llava15", "stage": "instruct", "seed": 7, "recipe": EVIL}
    manifest |= {"derived": {"num_soft_tokens": 576, "nested": {"llm": 7_063_427_072}, EVIL: EVIL}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(f"name: {EVIL}\n")
    return folder


def test_finished_run(run: Path) -> None:
    page = Strict(write_report(run).read_text(encoding="utf-8"))
    text = " ".join(page.text)
    for expected in ("llava15 / instruct", "finished", "576", "7,063,427,072", "0.750", "0.250", "mean_iou 0.500"):
        assert expected in text
    assert EVIL in text
    assert page.tags.count("figure") == 3
    assert page.tags.count("article") == 6
    assert page.tags.count("img") == 6
    assert text.count("\u2713 right") == 3
    assert text.count("\u2717 wrong") == 3
    assert f"run={run}" in text or "run=outputs" in text
    with Image.open(run / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
    assert not list(run.glob(".*.tmp"))


def test_evaluations_between_steps_are_curves(run: Path) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step in (100, 200, 300):
            figures = {f"val/{split}/refer/{metric}": step / 1000 for split in ("held", EVIL.replace("/", ""))
                       for metric in ("mean_iou", "num_samples", "blind", "mean_iou/red")}  # fmt: skip
            file.write(json.dumps({"step": step, **figures}) + "\n")
        file.write(json.dumps({"step": 300, "val/held/once/score": 1.0}) + "\n")
    page = Strict(write_report(run).read_text(encoding="utf-8"))
    assert page.tags.count("figure") == 4
    text = " ".join(page.text)
    assert "refer mean_iou, while training" in text
    assert "step 200: held 0.2, " in text
    assert "once score" not in text, "one point is no curve"


def test_nothing_is_executed_or_fetched(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    page = Strict(html)
    assert "script" not in page.tags
    assert page.loads
    assert all(value.startswith("data:image/") for value in page.loads)
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_empty_run_says_what_is_missing(tmp_path: Path) -> None:
    text = " ".join(Strict(write_report(tmp_path).read_text(encoding="utf-8")).text)
    for expected in ("status unknown", "not finished", "No evaluation yet", "No metrics", "No predictions", "manifest"):
        assert expected in text
    assert not (tmp_path / "contact_sheet.png").exists()


def test_half_a_run(run: Path) -> None:
    """Interrupted while writing: cut-off lines, a missing image, a damaged results file, odd values."""
    (run / "results.json").write_text('{"held": {"re')
    (run / "manifest.json").write_text('{"status": "interrupted", "name": "x"}')
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": NaN}\n{"step": 2, "train/loss": 2.5}\n{"step": 3, "tr'
    )
    odd = {
        "id": "a",
        "score": None,
        "image": "gone.png",
        "boxes": {"target": [1, 2], "predicted": [0.1, 0.1, 0.5, 1.4]},
    }
    _jsonl(run / "predictions" / "held_refer.jsonl", [odd])
    page = Strict(write_report(run).read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert "interrupted" in text
    assert "step 2" in text
    assert "no image" in text
    assert "No evaluation yet" in text


def test_a_step_logged_twice_counts_once(tmp_path: Path) -> None:
    _jsonl(
        tmp_path / "metrics.jsonl", [{"step": s, "train/loss": v} for s, v in ((1, 5.0), (2, 4.0), (2, 3.0), (3, 2.0))]
    )
    assert load_run(tmp_path).series == {"train/loss": [(1, 5.0), (2, 3.0), (3, 2.0)]}


def test_chat_command_can_be_pasted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = run.parents[3]
    monkeypatch.chdir(root)
    expected = "python -m mmexp.chat run=outputs/llava15/instruct/r1 image=data/images/0.png"
    assert chat_command(load_run(Path("outputs/llava15/instruct/r1"))) == expected
    monkeypatch.chdir("/")
    assert f"run={run}".lstrip("/").split("=")[1].lstrip("/") in chat_command(load_run(run))
    spaced = root / "a b"
    spaced.mkdir()
    assert re.search(r"'run=.*a b'$", chat_command(load_run(spaced)))


def test_what_the_stages_before_took_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    manifest: dict[str, Any] = {"status": "finished"}
    manifest["derived"] = {"num_steps": 8, "before": {"train_s": 211.02, "tokens": 799406.0}}
    file.write_text(json.dumps(manifest))
    page = write_report(tmp_path).read_text()
    assert "<dt>stages before</dt><dd>211 s, 799,406 tokens</dd>" in page
    manifest["derived"]["before"] = {}
    file.write_text(json.dumps(manifest))
    assert "stages before" not in write_report(tmp_path).read_text()
