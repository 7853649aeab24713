"""A conversation with a model: history, pictures, and streamed answers. Chat and notebooks use it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mmexp.contracts import Medium, Text, Turn
from mmexp.errors import DataError
from mmexp.prompt.image import load_image

if TYPE_CHECKING:
    from mmexp.engine import Generator
    from mmexp.llm import Sampling


def question_turn(media: Sequence[Medium], question: str) -> Turn:
    """What a user asks: the pictures that go with it, a line break behind them, and the words."""
    return Turn(role="user", parts=(*media, Text(text="\n" if media else ""), Text(text=question)))


class Conversation:
    """Keeps what was said. A picture that was shown goes with the next question.

    Args:
        generator: The model.
        sampling: How answers are chosen.
    """

    def __init__(self, generator: Generator, sampling: Sampling) -> None:
        self.generator, self.sampling = generator, sampling
        self.turns: list[Turn] = []
        self._pending: list[Medium] = []

    def show(self, path: str) -> None:
        """Puts a picture before the next question.

        Raises:
            DataError: it is no readable picture.
        """
        if "image" not in self.generator.plan.inputs:
            raise DataError("this run has no image branch", where=str(path))
        picture = load_image(os.path.expanduser(path), f"image={path}", self.generator.plan.backdrop)
        self._pending.append(Medium(source=picture))

    def ask(self, question: str, on_text: Callable[[str], None]) -> str:
        """The answer, which is also handed out piece by piece."""
        turns = [*self.turns, question_turn(self._pending, question)]
        answer = self.generator.stream(turns, self.sampling, on_text)
        self._pending = []
        self.turns = [*turns, Turn(role="assistant", parts=(Text(text=answer),))]
        return answer

    def command_or_question(self, line: str, on_text: Callable[[str], None]) -> None:
        """One line of a chat: `/image FILE`, `/new`, or a question. A mistake is told and changes nothing."""
        try:
            if line.startswith("/image"):
                self.show(line.removeprefix("/image").strip())
            elif line == "/new":
                self.turns, self._pending = [], []
            elif line:
                self.ask(line, on_text)
        except DataError as error:
            on_text(str(error))
