"""The page itself. This file and `server.py` alone need Gradio."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache

from mmexp.demo.desk import Desk, Exchange, Visit
from mmexp.demo.examples import Example
from mmexp.demo.pictures import boxes_of, marked, shown
from mmexp.serve.errors import ApiError

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_KEPT_S = 24 * 3600
"""How long what a visitor left behind stays in memory and on disk."""


class Page:
    """What the page does when somebody touches it.

    Args:
        desk: The runs.
        examples: Pictures with questions to pick.
        folder: For the files of pictures; the page shows nothing outside of it.
    """

    def __init__(self, desk: Desk, examples: Sequence[Example], folder: Path) -> None:
        self.desk, self.examples, self.folder = desk, tuple(examples), folder

    def take(self, payload: dict[str, Any] | None, visit: Visit) -> tuple[Any, str]:
        """An upload becomes the picture of the next question; the guard has let nothing else through."""
        if payload is None:
            return self.drop(visit)
        try:
            data = Path(payload["path"]).read_bytes()
            for speaker in self.desk.speakers:
                speaker.prompts.check_picture(data)
            file = self._file(shown(data))
        except ApiError as error:
            visit.picture = None
            return None, notice(error.message)
        visit.picture = data
        return file, ""

    def drop(self, visit: Visit) -> tuple[None, str]:
        """The next question goes without a picture."""
        visit.picture = None
        return None, ""

    def pick(self, visit: Visit, event: gr.SelectData) -> tuple[Any, ...]:
        """An example begins a conversation."""
        example = self.examples[int(event.index) % len(self.examples)]
        visit.clear()
        visit.chats, visit.picture = [], example.picture
        return self._file(shown(example.picture)), example.question, "", *self._chats(visit)

    def clear(self, visit: Visit) -> tuple[Any, ...]:
        """Begins a conversation about the same picture."""
        visit.clear()
        visit.chats = []
        return "", "", *self._chats(visit)

    def ask(self, visit: Visit, question: str, *settings: float) -> Iterator[tuple[Any, ...]]:
        """Notice, question, the two buttons and the chats, while the runs answer."""
        names = ("temperature", "top_p", "repetition_penalty", "max_tokens")
        if visit.asked is not None:
            return
        exchange = None
        try:
            exchange = self.desk.ask(visit, question, dict(zip(names, settings, strict=True)))
            asked = [_said("user", question.strip())]
            if visit.pending is not None:
                asked.insert(0, self._picture("user", shown(visit.pending)))
            for texts in exchange:
                if visit.asked is not exchange:
                    break
                yield "", "", *_buttons(False), *self._chats(visit, [[*asked, _said("assistant", t)] for t in texts])
            if visit.asked is exchange:
                self._keep(visit, exchange, asked)
            yield "", gr.skip(), *_buttons(True), *self._chats(visit)
        except ApiError as error:
            yield notice(error.message), question, *_buttons(True), *self._chats(visit)
        finally:
            if visit.asked is exchange:
                visit.asked = None

    def stop(self, visit: Visit) -> None:
        """What was said so far becomes the answer."""
        if visit.asked is not None:
            visit.asked.stop()

    def _keep(self, visit: Visit, exchange: Exchange, asked: Sequence[dict[str, Any]]) -> None:
        """Adds the exchange to what is shown, with the boxes of the answers."""
        before = visit.chats or [[] for _ in self.desk.speakers]
        visit.chats = []
        answers = zip(self.desk.speakers, before, exchange.samples, exchange.texts, strict=True)
        for speaker, chat, sample, text in answers:
            chat = [*chat, *asked, _said("assistant", text or "(no words)")]
            found = boxes_of(text, sample, speaker.plan.processor.boxes)
            if found is not None:
                picture, boxes = found
                chat.append(self._picture("assistant", marked(shown(picture), boxes)))
            visit.chats.append(chat)
        self.desk.keep(visit, exchange)

    def _chats(self, visit: Visit, more: Sequence[list[dict[str, Any]]] | None = None) -> list[Any]:
        before = visit.chats or [[] for _ in self.desk.speakers]
        return [[*chat, *new] for chat, new in zip(before, more or [[] for _ in before], strict=True)]

    def _picture(self, role: str, image: Any) -> dict[str, Any]:
        return {"role": role, "content": {"path": self._file(image), "alt_text": "the picture"}}

    def _file(self, image: Any) -> str:
        return save_pil_to_cache(image, cache_dir=str(self.folder), format="png")

    def build(self) -> gr.Blocks:
        """The page, with what it does."""
        with gr.Blocks(title="mmexp demo", analytics_enabled=False, delete_cache=(600, _KEPT_S)) as blocks:
            visit = gr.State(Visit(), time_to_live=_KEPT_S)
            gr.HTML(_head(self.desk), elem_id="head")
            with gr.Row(elem_id="all"):
                with gr.Column(scale=1, min_width=280):
                    picture, gallery = self._left()
                with gr.Column(scale=2, min_width=320):
                    chats = self._right()
                    told = gr.HTML("", elem_id="notice")
                    hint = "Ask about the picture" if self.desk.takes_pictures else "Ask"
                    question = gr.Textbox(label="Question", placeholder=hint, show_label=False, lines=1, max_lines=6,
                                          elem_id="question", autofocus=True)  # fmt: skip
                    with gr.Row():
                        ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=90)
                        stop = gr.Button("Stop", elem_id="stop", interactive=False, min_width=90)
                        clear = gr.Button("New conversation", elem_id="clear", min_width=150)
                    settings = self._settings()
            hidden: dict[str, Any] = {"api_visibility": "private"}
            picture.upload(self.take, [picture, visit], [picture, told], preprocess=False, **hidden)
            picture.clear(self.drop, visit, [picture, told], **hidden)
            gr.on([ask.click, question.submit], self.ask, [visit, question, *settings],
                  [told, question, ask, stop, *chats], show_progress="hidden", **hidden)  # fmt: skip
            stop.click(self.stop, visit, None, concurrency_limit=None, **hidden)
            clear.click(self.clear, visit, [told, question, *chats], concurrency_limit=None, **hidden)
            if gallery is not None:
                gallery.select(self.pick, visit, [picture, question, told, *chats], show_progress="hidden", **hidden)
        blocks.queue(max_size=self.desk.limits.max_queue, default_concurrency_limit=self.desk.limits.max_batch)
        return blocks

    def _left(self) -> tuple[gr.Image, gr.Gallery | None]:
        sees = self.desk.takes_pictures
        picture = gr.Image(label="Picture", sources=["upload", "clipboard"], type="filepath", image_mode=None,
                           height=300, buttons=[], elem_id="picture", visible=sees)  # fmt: skip
        if not sees or not self.examples:
            return picture, None
        files = [(self._file(shown(example.picture)), example.question) for example in self.examples]
        return picture, gr.Gallery(files, label="Examples", columns=4, height="auto", allow_preview=False, buttons=[],
                                   object_fit="contain", interactive=False, elem_id="examples")  # fmt: skip

    def _settings(self) -> list[gr.Slider]:
        limit = self.desk.limits.max_tokens
        with gr.Accordion("How it answers", open=False, elem_id="settings"):
            return [
                gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 takes the likeliest token"),
                gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="share of the likeliest tokens to draw from"),
                gr.Slider(1, 2, 1, step=0.05, label="Repetition penalty", info="above 1, said words are less likely"),
                gr.Slider(1, limit, min(128, limit), step=1, label="Longest answer", info="tokens"),
            ]

    def _right(self) -> list[gr.Chatbot]:
        chats = []
        with gr.Row():
            for number, speaker in enumerate(self.desk.speakers):
                with gr.Column(min_width=260):
                    gr.HTML(f"<h2>{html.escape(speaker.name)}</h2>", elem_classes="name")
                    chats.append(gr.Chatbot(
                        show_label=False, height=440, render_markdown=False, latex_delimiters=[], allow_tags=False,
                        feedback_options=None, buttons=[], allow_file_downloads=False, elem_id=f"chat{number}",
                        elem_classes="chat",
                    ))  # fmt: skip
        return chats


def notice(text: str) -> str:
    """One line that says what is wrong; nothing in it is markup."""
    return f'<p role="alert">{html.escape(text)}</p>'


def _head(desk: Desk) -> str:
    count = "two runs, side by side" if len(desk.speakers) > 1 else "a run"
    blind = [speaker.name for speaker in desk.speakers if not speaker.takes_pictures]
    words = f"{' and '.join(blind)} takes no pictures, so this is about words alone." if blind else ""
    return f"<h1>Talk to {count}</h1>" + (f"<p>{html.escape(words)}</p>" if words else "")


def _said(role: str, text: str) -> dict[str, Any]:
    """A message; Gradio shows the text of one as HTML, so what was written is escaped."""
    return {"role": role, "content": {"type": "text", "text": html.escape(text)}}


def _buttons(is_free: bool) -> tuple[Any, Any]:
    return gr.update(interactive=is_free), gr.update(interactive=not is_free)
