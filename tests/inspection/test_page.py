"""The page: one file, safe with hostile texts, maps where they belong, and used as a person would in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmexp.errors import ConfigError
from mmexp.inspection import Inside, page_html
from mmexp.inspection.pack import packed, sample_data
from tests.browser import Browser, browser
from tests.inspection.models import looked

PIXELS = "[...document.querySelector('.thumbs canvas').getContext('2d').getImageData(0, 0, 4, 4).data].join()"
EVIL = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>&amp;\u2028"


def at_one_patch(found: Inside, patch: int) -> Inside:
    """As if every token had looked at one soft token alone."""
    attention = torch.zeros_like(found.attention)
    attention[..., patch] = 0.5
    return replace(found, attention=attention)


def test_maps_come_back_from_their_bytes() -> None:
    maps = torch.rand(3, 2, 1, 6)
    found = packed(maps)
    levels = np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(3, 2, 1, 6)
    tops = np.array(found["top"]).reshape(3, 2)
    np.testing.assert_allclose(levels / 255 * tops[..., None, None], maps.numpy(), atol=0.004)
    assert packed(torch.zeros(1, 1, 4))["top"] == [0.0]


def test_means_stand_in_front() -> None:
    found = looked("linear")
    data = sample_data(found, None)
    count = len(found.tokens)
    assert data["layers"]["lead"] == [3, count + 1]
    assert data["heads"]["lead"] == [2, 2, count + 1]
    tops = np.array(data["layers"]["top"]).reshape(3, count + 1)
    maps = found.attention.mean(2)
    assert tops[0, 0] == pytest.approx(float(maps.mean((0, 1)).max()), rel=5e-3)
    assert tops[2, 1] == pytest.approx(float(maps[0, 1].max()), rel=5e-3)
    assert sample_data(found, (1,))["head_layers"] == [1]
    with pytest.raises(ConfigError, match="0 to 1"):
        sample_data(found, (2,))


def test_what_has_no_room_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmexp.inspection.pack.ROOM", 10)
    data = sample_data(looked("qformer"), None)
    assert data["head_layers"] == []
    assert data["heads"] is None
    assert data["queries"]["maps"]["lead"] == [3, 1, 4]
    assert not data["queries"]["heads"]


def test_hostile_texts_stay_texts_and_nothing_is_asked_of_the_network() -> None:
    found = replace(looked("linear"), id=EVIL, prompt=EVIL, answer=EVIL, tokens=(EVIL, *looked("linear").tokens[1:]))
    html = page_html([found], EVIL, EVIL, notes=[EVIL])
    assert html.count("</script>") == html.count("<script") == 2
    assert "<img" not in html
    assert json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])["samples"][0]["id"] == EVIL  # type: ignore[index]
    script = html.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    assert "url(" not in html


def place(tab: Browser, selector: str) -> list[float]:
    found = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
    return tab.run(f"(({{x, y, width, height}}) => [x, y, width, height])({found})")


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_the_map_lies_where_the_encoder_looked(fit: str, tmp_path: Path) -> None:
    """Patch 6 of 4 x 4: the second row, the third column. The picture is twice as wide as high."""
    file = tmp_path / "page.html"
    file.write_text(page_html([at_one_patch(looked("linear", fit), 6)], "run", "here"), encoding="utf-8")
    with browser(tmp_path / "profile") as tab:
        tab.size(1280, 900)
        tab.open(file)
        x, y, width, height = place(tab, ".views img")
        left, top, side, down = place(tab, ".views canvas")
        assert width == pytest.approx(2 * height, abs=1)
        assert side == pytest.approx(down, abs=1)
        assert side == pytest.approx(width if fit == "pad" else height, abs=1)
        assert [left + side / 2, top + down / 2] == pytest.approx([x + width / 2, y + height / 2], abs=1)
        tab.screenshot(tmp_path / "page.png", whole=False)
    shot = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    area = shot[round(top) : round(top + down), round(left) : round(left + side)]
    rows, columns = np.nonzero((area[..., 0] > 220) & (area[..., 1] > 210) & (area[..., 2] < 220))
    middle = (rows.min() + rows.max()) / 2 / down, (columns.min() + columns.max()) / 2 / side
    assert middle == pytest.approx((1.5 / 4, 2.5 / 4), abs=0.03)


def test_a_person_uses_it(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page_html([looked("qformer"), looked("linear")], "run", "here"), encoding="utf-8")
    with browser(tmp_path / "profile") as tab:
        for width, dark in ((1280, False), (390, True)):
            tab.size(width, 900, dark)
            tab.open(file)
            assert tab.run("document.documentElement.scrollWidth") <= width
        top = "document.querySelector('.top').textContent"
        first = tab.run(top)
        tab.click(".tokens button:nth-child(2)")
        assert tab.run("document.querySelector('.tokens [aria-pressed=true]').textContent").startswith(
            looked("qformer").tokens[0]
        )
        assert tab.run("document.querySelector('select[name=head]').disabled")
        tab.choose("select[name=layer]", "1")
        by_layer = tab.run(top)
        tab.choose("select[name=head]", "0")
        shown = looked("qformer").over_picture
        assert shown is not None
        assert float(tab.run(top)) == pytest.approx(float(shown[0, 1, 0].max()), abs=6e-4)
        assert float(by_layer) == pytest.approx(float(shown[0, 1].mean(0).max()), abs=6e-4)
        assert float(first) == pytest.approx(float(shown.mean((0, 1, 2)).max()), abs=6e-4)
        tab.click(".words button:nth-child(3)")
        assert tab.run("document.querySelector('.nearest small').textContent") == "soft token 2, nearest first"
        word = "document.querySelector('.nearest td').firstChild.textContent"
        assert tab.run(word) == looked("qformer").near[2][0][0]
        assert tab.run("document.querySelectorAll('.thumbs canvas').length") == 4
        before = tab.run(PIXELS)
        tab.choose("select[name='connector layer']", "2")
        assert tab.run(PIXELS) != before
