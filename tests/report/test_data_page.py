"""The page about a dataset: balanced, safe, and with everything it was given."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from mmexp.report import Example, Kind, write_data_page
from tests.report.test_page import EVIL, Strict


def test_page_shows_everything_and_loads_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), "red").save(tmp_path / "p.png")
    examples = [
        Example(id=EVIL, detail=EVIL, text=EVIL, file=str(tmp_path / "p.png")),
        Example(id="gone", detail="missing", file=str(tmp_path / EVIL.replace("/", ""))),
    ]
    kinds = [
        Kind(name="media", meaning="cannot be read", grave=True, count=31, examples=examples),
        Kind(name="cut", meaning="too long", grave=False, count=1, examples=[Example(id="c", detail="2 of 4 turns")]),
    ]
    page = write_data_page(tmp_path / "sub" / "d.html", "Data check", {"rows": "1,000"}, kinds, {"tokens": {"1-8": 3}})
    html = page.read_text(encoding="utf-8")
    seen = Strict(html)
    text = " ".join(seen.text)
    for shown in ("31 errors, 1 warning", "1,000", "cannot be read", "the first 2 of 31", "unreadable image", "1-8"):
        assert shown in text
    assert "<script" not in html
    assert all(load.startswith(("data:image/", "#")) for load in seen.loads)
    assert not re.search(r"https?://", html)
    assert [path.name for path in page.parent.iterdir()] == ["d.html"]


def test_flawless_data(tmp_path: Path) -> None:
    page = write_data_page(tmp_path / "d.html", "Data check", {}, [], {})
    text = " ".join(Strict(page.read_text(encoding="utf-8")).text)
    assert "0 errors, 0 warnings" in text
    assert "None found." in text


def test_a_picture_that_would_fill_the_memory_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    kind = Kind(name="media", meaning="", grave=True, count=1,
                examples=[Example(id="b", detail="too large", file=str(tmp_path / "bomb.png"))])  # fmt: skip
    page = write_data_page(tmp_path / "d.html", "Data check", {}, [kind], {})
    assert "unreadable image" in page.read_text(encoding="utf-8")
