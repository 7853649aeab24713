"""The page: one file, safe with hostile texts, and used as a person would in a real browser where there is one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mmexp.compare import compare, load_folders, page_html
from mmexp.compare.page_curves import curves_of
from tests.browser import browser
from tests.compare.runs import make_run

EVIL = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>&amp;\u2028"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Three groups of two seeds on 30 samples: A is right everywhere but on two, B on every other, C on none."""
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "one.png")
    for seed in (0, 1):
        for depth, scores in ((1, [1] * 28 + [0, 0]), (2, [1, 0] * 15), (3, [0] * 30)):
            said = [f"{EVIL} {at}" if at == 7 else f"depth {depth} says {at}" for at in range(30)]
            make_run(
                tmp_path / "runs" / f"d{depth}s{seed}",
                scores=scores,
                seed=seed,
                answers=said,
                image=str(tmp_path / "one.png"),
                config={"connector": {"_target_": "mmexp.connector.MlpConfig", "depth": depth}},
                overrides=[f"connector={depth}{EVIL}"],
            )
    file = tmp_path / "page.html"
    file.write_text(page_html(compare(load_folders([str(tmp_path / "runs")])), max_samples=500), encoding="utf-8")
    return file


def test_hostile_texts_stay_texts(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert html.count("</script>") == html.count("<script") == 2
    assert "<img" not in html
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert f"{EVIL} 7" in data["texts"]
    assert len(data["pictures"]) == 1, "a picture is embedded once"


def test_nothing_is_asked_of_the_network(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    script = html.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', html)
    assert "@import" not in html
    assert "url(" not in html


def test_evaluations_between_steps_are_curves_over_steps_and_time(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = make_run(tmp_path / f"s{seed}", seed=seed, step_s=0.5)
        with (run / "metrics.jsonl").open("a") as file:  # steps 15 and 30, of which only the second is one of training
            for step in (15, 30):
                figures = {"exact_match": step / 100 + seed / 10, "num_samples": 4, "exact_match/colour": 1.0}
                named = {f"val/heldout/vqa/{name}": value for name, value in figures.items()}
                file.write(json.dumps({"step": step, **named, "val/heldout/blind_only/blind": 0.5}) + "\n")
    comparison = compare(load_folders([str(tmp_path)]))
    html = page_html(comparison, max_samples=5)
    shown = re.findall(r"<figure class=\"over-(\w+)\"><figcaption>(.*?)</figcaption>", html)
    val = "val/heldout/vqa/exact_match"
    assert shown == [("step", "train/loss"), ("time", "train/loss"), ("step", val), ("time", val)]
    (group,) = comparison.groups
    assert [curve.points for curve in curves_of(0, group, "A", val, "step")][-1] == [(15, 0.2), (30, 0.35)]
    assert [curve.points for curve in curves_of(0, group, "A", val, "time")][-1] == [(7.5, 0.2), (15.0, 0.35)]


def test_samples_are_thinned_evenly(tmp_path: Path) -> None:
    make_run(tmp_path / "a", scores=[1] * 10)
    html = page_html(compare(load_folders([str(tmp_path)])), max_samples=5)
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    (benchmark,) = data["benchmarks"]
    assert [sample["id"] for sample in benchmark["samples"]] == ["s0", "s2", "s4", "s6", "s8"]
    assert benchmark["total"] == 10


def test_a_person_uses_it(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        tab.size(1280, 900)
        tab.open(page)
        assert tab.run("document.title") == "6 runs in 3 groups"
        count = "document.getElementById('count').textContent"
        cards = "document.querySelectorAll('.sample').length"
        assert tab.run(count) == "30 of 30 samples; page 1 of 3"
        assert tab.run(cards) == 12
        tab.click("#next")
        assert tab.run(count) == "30 of 30 samples; page 2 of 3"
        tab.choose("#filter", "a")
        assert tab.run(count) == "14 of 30 samples; page 1 of 2"
        marks = tab.run("[...document.querySelectorAll('.chosen .mark')].map((mark) => mark.textContent)")
        assert marks == ["✓ right", "✗ wrong"] * 12
        tab.choose("#filter", "b")
        assert tab.run("document.querySelector('.sample p').textContent") == "question s28?"
        tab.choose("#filter", "wrong")
        assert tab.run(cards) == 1
        tab.choose("#filter", "all")
        tab.choose("#text", "broken")
        assert tab.run(cards) == 1
        assert tab.run("document.querySelector('.said').textContent") == f"{EVIL} 7"
        assert tab.run("document.querySelector('.sample img').naturalWidth") == 60
        tab.choose("#text", "")
        tab.choose("#type", "colour")
        assert tab.run(count) == "15 of 30 samples; page 1 of 2"
        tab.choose("#b", "4")
        assert tab.run("document.querySelectorAll('.sample .chosen b')[1].textContent") == "C"


def test_groups_and_axes_answer_clicks(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        tab.size(1280, 900)
        tab.open(page)
        dim = "new Set([...document.querySelectorAll('.dim')].map((node) => node.dataset.g))"
        tab.click("tbody tr[data-g='1'] td")
        assert tab.run(f"[...{dim}].sort()") == ["0", "2"]
        tab.click("#reset")
        assert tab.run(f"{dim}.size") == 0
        shown = "getComputedStyle(document.querySelector('.over-time')).display"
        assert tab.run(shown) == "none"
        tab.click("input[value=time]")
        assert tab.run(shown) != "none"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_it_fits_the_window(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    with browser(tmp_path / "profile") as tab:
        tab.size(width, 844, dark)
        tab.open(page)
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run("Math.min(...[...document.querySelectorAll('select')].map((s) => s.offsetHeight))") >= 40
        bright = tab.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert (bright < 60) == dark
