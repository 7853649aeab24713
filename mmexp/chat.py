"""Talks to a finished run: `python -m mmexp.chat run=outputs/llava15/... image=photo.jpg`."""

from __future__ import annotations

import sys

from mmexp.config import Invocation, launch

HELP = "/image FILE  another picture     /new  forget everything     /exit  (or Ctrl-D)"


def body(invocation: Invocation) -> None:
    """Reads questions from the terminal (or one from `message=`) and streams answers."""
    from mmexp.answering import generator_of_run
    from mmexp.config import resolve
    from mmexp.engine import setup_logging
    from mmexp.engine.conversation import Conversation
    from mmexp.llm import Sampling

    cfg = resolve(invocation.cfg)
    setup_logging()
    names = ("temperature", "top_p", "repetition_penalty", "max_new_tokens", "seed")
    talk = Conversation(
        generator_of_run(cfg["run"], invocation.registered), Sampling(**{name: cfg[name] for name in names})
    )
    if cfg["image"] is not None:
        talk.show(cfg["image"])
    if cfg["message"] is not None:
        talk.ask(str(cfg["message"]), _say)
        _say("\n")
        return
    sys.stderr.write(f"{HELP}\n")
    while (line := _read()) is not None:
        talk.command_or_question(line, _say)
        _say("\n")


def _say(text: str) -> None:
    """Shows a piece of an answer at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _read() -> str | None:
    """One line, or None at the end."""
    try:
        line = input("> ").strip()
    except EOFError:
        return None
    return None if line == "/exit" else line


if __name__ == "__main__":
    launch(body, config_name="chat", module="mmexp.chat")
