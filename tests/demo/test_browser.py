"""The page as a person uses it: pick, upload, ask, read, on a desk and on a phone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import Browser, browser, find_browser
from tests.demo.test_process import showing

pytest.importorskip("gradio", reason="the extra demo")
pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")

SAID = "[...document.querySelectorAll('#chat{} .message-content')].map((each) => each.innerText.trim()).filter(Boolean)"
PICTURES = "document.querySelectorAll('#chat{} .message img').length"
NOTICE = "document.querySelector('#notice').innerText.trim()"
FREE = "!document.querySelector('#ask').disabled && document.querySelector('#stop').disabled"
WATCH = """
window.seen = [new Set(), new Set()];
new MutationObserver(() => [0, 1].forEach((at) => {
  const said = [...document.querySelectorAll(`#chat${at} .bot .message-content`)].pop();
  if (said) seen[at].add(said.innerText);
})).observe(document.body, {subtree: true, childList: true, characterData: true});
"""


def opened(at: Browser, port: int) -> None:
    at.visit(f"http://127.0.0.1:{port}/")
    at.wait("document.querySelector('#ask') && document.querySelector('#picture input[type=file]')")


def asked(at: Browser, question: str) -> None:
    """Asks, and waits until both have answered."""
    before = [len(at.run(SAID.format(chat))) for chat in (0, 1)]
    at.type("#question textarea", question)
    at.wait(f"document.querySelector('#question textarea').value === {question!r}")
    at.click("#ask")
    for chat in (0, 1):
        at.wait(f"{SAID.format(chat)}.length >= {before[chat] + 2}")
    at.wait(FREE)


def test_it_is_used_in_a_browser(run: Path, other: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "fake.png").write_text("no picture")
    Image.new("1", (30_000, 2_000)).save(tmp_path / "wide.png")
    (tmp_path / "heavy.png").write_bytes(b"x" * (11 * 2**20))
    runs = f"[{run},{other}]"
    with showing(runs, tmp_path / "log") as (_, port), browser(tmp_path / "profile") as at:
        at.size(1280, 900)
        opened(at, port)
        at.upload("#picture input[type=file]", pictures[3])
        at.wait("document.querySelector('#picture img[src$=\"/image.png\"]')")  # made anew by the server
        at.run(f"(() => {{ {WATCH} }})()")
        asked(at, "<b>What</b> is <img src=x onerror=alert(1)> there?")
        for chat in (0, 1):
            said = at.run(SAID.format(chat))
            assert said[0].endswith("<b>What</b> is <img src=x onerror=alert(1)> there?"), "as it was written"
            assert said[1]
            assert at.run(PICTURES.format(chat)) == 1
        assert at.run("seen.map((texts) => texts.size > 2)") == [True, True], "words came in pieces"
        assert at.run(SAID.format(0))[1] != at.run(SAID.format(1))[1], "two runs"
        assert at.run("document.querySelector('#question textarea').value") == ""
        asked(at, "And?")
        assert [at.run(PICTURES.format(chat)) for chat in (0, 1)] == [1, 1], "the picture went once"
        _refused(at, tmp_path)
        at.click("#clear")
        at.wait(f"{SAID.format(0)}.length + {SAID.format(1)}.length === 0")
        opened(at, port)
        asked(at, "And?")
        assert [len(at.run(SAID.format(chat))) for chat in (0, 1)] == [2, 2], "another visitor sees nothing of it"
        for width in (1280, 390):
            for dark in (False, True):
                at.size(width, 844, dark)
                time.sleep(0.3)
                assert at.run("document.documentElement.scrollWidth <= innerWidth"), "no scrolling sideways"
    assert "Traceback" not in (tmp_path / "log").read_text()


def _refused(at: Browser, folder: Path) -> None:
    """Uploads that are no picture, and a question that is too long: one answer each, and the page goes on."""
    for name, says in (("fake", "not a picture in a known format"), ("wide", "30000 x 2000 pixels")):
        at.upload("#picture input[type=file]", folder / f"{name}.png")
        at.wait(f"{NOTICE}.includes({says!r})")
    at.upload("#picture input[type=file]", folder / "heavy.png")
    at.wait("document.body.innerText.includes('exceed the maximum allowed size of 10')")
    at.type("#question textarea", "a" * 20_000)
    at.click("#ask")
    at.wait(f"{NOTICE}.includes('and the context has')")
    assert at.run("document.querySelector('#question textarea').value.length") == 20_000
    at.wait(FREE)
    at.choose("#question textarea", "")


@pytest.mark.slow
def test_an_answer_is_stopped(run: Path, other: Path, tmp_path: Path) -> None:
    settings = ("max_tokens=2000", "timeout_s=100")
    with showing(f"[{run},{other}]", tmp_path / "log", *settings) as (_, port), browser(tmp_path / "profile") as at:
        at.size(1280, 900)
        opened(at, port)
        at.run("document.querySelector('#settings button').click()")
        at.wait("document.querySelectorAll('#settings input[type=number]').length === 4")
        for number, value in ((1, "1.5"), (4, "2000")):
            at.choose(f"#settings .block:nth-of-type({number}) input[type=number]", value)
        at.type("#question textarea", "Tell?")
        at.click("#ask")
        at.wait(f"{SAID.format(0)}.length === 2")
        at.click("#stop")
        at.wait(FREE, timeout_s=5)
        length = at.run(f"{SAID.format(0)}[1].length")
        time.sleep(0.5)
        assert at.run(f"{SAID.format(0)}[1].length") == length
        asked(at, "And?")
