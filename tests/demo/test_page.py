"""What the page answers to a touch, without a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmexp.demo import Desk, Example
from mmexp.demo.desk import Visit
from mmexp.engine import Generator
from mmexp.serve.batcher import Done, Piece

pytest.importorskip("gradio", reason="the extra demo")

EVIL = "<img src=x onerror=alert(1)>"
HOW = (0, 1.0, 1.0, 8)


class Scripted:
    """Says the same to every question, as a model would that learned nothing else."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def put(self, job: Any) -> None:
        for piece in self.pieces:
            job.on_event(Piece(piece))
        job.on_event(Done("stop", len(self.pieces)))


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[..., Any]:
    from mmexp.demo.page import Page

    return lambda desk, *examples: Page(desk, examples, tmp_path / "files")


def upload(file: Path) -> dict[str, Any]:
    return {"path": str(file), "orig_name": file.name}


def texts(chat: list[dict[str, Any]]) -> list[str]:
    return [message["content"].get("text", "<picture>") for message in chat]


def test_boxes_of_an_answer_are_drawn_in_the_chat_of_its_run(
    page_of: Callable[..., Any], desk_of: Callable[..., Desk], generator: Generator, pictures: list[Path]
) -> None:
    desk = desk_of(generator, generator)
    page, visit = page_of(desk), Visit(picture=pictures[0].read_bytes())
    ends = [speaker.batcher for speaker in desk.speakers]
    desk.speakers[0].batcher, desk.speakers[1].batcher = Scripted("[0.25, 0.4, ", "0.75, 0.6]"), Scripted("no box")
    *_, last = page.ask(visit, "Where?", *HOW)
    for speaker, end in zip(desk.speakers, ends, strict=True):
        speaker.batcher = end
    one, two = last[-2:]
    assert texts(one) == ["<picture>", "Where?", "[0.25, 0.4, 0.75, 0.6]", "<picture>"]
    assert texts(two) == ["<picture>", "Where?", "no box"]
    asked, drawn = (Image.open(one[at]["content"]["path"]).convert("RGB") for at in (0, 3))
    assert asked.size == drawn.size
    assert asked.getpixel((240, 180)) == drawn.getpixel((240, 180)), "inside of the box"
    assert asked.getpixel((120, 180)) != drawn.getpixel((120, 180)), "its left edge"


def test_nothing_that_somebody_wrote_is_markup(
    page_of: Callable[..., Any], desk_of: Callable[..., Desk], generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmexp.demo.page import notice

    desk = desk_of(generator)
    page, end = page_of(desk), desk.speakers[0].batcher
    desk.speakers[0].name, desk.speakers[0].batcher = EVIL, Scripted(EVIL)
    *_, last = page.ask(Visit(), EVIL, *HOW)
    desk.speakers[0].batcher = end
    assert texts(last[-1]) == ["&lt;img src=x onerror=alert(1)&gt;"] * 2
    assert "<img" not in notice(EVIL)
    html = [block for block in page.build().blocks.values() if type(block).__name__ == "HTML"]
    assert any("&lt;img" in str(block.value) for block in html)
    assert not any("<img" in str(block.value) for block in html)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: file.write_text("no picture"), "a picture cannot be read: not a picture in a known format"),
        (lambda file: Image.new("1", (30_000, 2_000)).save(file, "PNG"), "30000 x 2000 pixels, and 40 million"),
        (lambda file: file.write_bytes(b"x" * (11 * 2**20)), "11.0 MiB, and 10 are allowed"),
        (lambda file: file.write_bytes(b""), "a picture cannot be read: the image is empty"),
    ],
)
def test_an_upload_that_is_no_picture_gets_one_answer(
    page_of: Callable[..., Any],
    desk_of: Callable[..., Desk],
    generator: Generator,
    tmp_path: Path,
    make: Any,
    says: str,
) -> None:
    page, visit = page_of(desk_of(generator)), Visit(picture=b"the one before")
    make(tmp_path / "upload.png")
    shown, told = page.take(upload(tmp_path / "upload.png"), visit)
    assert (shown, visit.picture) == (None, None)
    assert says in told
    assert told.count("<p") == 1
    assert str(tmp_path) not in told


def test_an_example_begins_a_conversation(
    page_of: Callable[..., Any], desk_of: Callable[..., Desk], generator: Generator, pictures: list[Path]
) -> None:
    import gradio as gr

    examples = [Example(picture=file.read_bytes(), question=file.stem) for file in pictures]
    page, visit = page_of(desk_of(generator), *examples), Visit()
    assert len(list(page.ask(visit, "What?", *HOW))) > 1
    _, question, told, chat = page.pick(visit, gr.SelectData(None, {"index": 4, "value": None}))
    assert (question, told, chat, visit.turns) == ("4", "", [], [])
    assert visit.pending == examples[4].picture


@pytest.mark.parametrize("way", ["clear", "pick"])
def test_what_is_begun_anew_meanwhile_stays_empty_and_free(
    page_of: Callable[..., Any], desk_of: Callable[..., Desk], generator: Generator, pictures: list[Path], way: str
) -> None:
    import gradio as gr

    page, visit = page_of(desk_of(generator), Example(picture=pictures[0].read_bytes(), question="What?")), Visit()
    answering = page.ask(visit, "Tell?", 1.5, 1.0, 1.0, 500)
    assert texts(next(answering)[-1])[0] == "Tell?"
    if way == "clear":
        page.clear(visit)
    else:
        page.pick(visit, gr.SelectData(None, {"index": 0, "value": None}))
    *_, (_, _, ask, stop, chat) = answering
    assert (chat, visit.turns, visit.asked) == ([], [], None)
    assert (ask["interactive"], stop["interactive"]) == (True, False)
    assert len(list(page.ask(visit, "What?", *HOW))) > 1


def test_a_page_that_is_closed_meanwhile_ends_its_answers(
    page_of: Callable[..., Any], desk_of: Callable[..., Desk], generator: Generator
) -> None:
    page, visit = page_of(desk_of(generator)), Visit()
    answering = page.ask(visit, "Tell?", 1.5, 1.0, 1.0, 500)
    next(answering)
    exchange = visit.asked
    answering.close()
    assert exchange is not None
    assert (visit.asked, exchange.is_stopped) == (None, True)


def test_a_refused_question_stays_to_be_mended(
    page_of: Callable[..., Any], desk_of: Callable[..., Desk], generator: Generator
) -> None:
    page, visit = page_of(desk_of(generator)), Visit()
    ((told, question, ask, stop, chat),) = page.ask(visit, "a" * 20_000, *HOW)
    assert "the context has" in told
    assert question == "a" * 20_000
    assert (ask["interactive"], stop["interactive"], chat) == (True, False, [])
    assert len(list(page.ask(visit, "What?", *HOW))) > 1
