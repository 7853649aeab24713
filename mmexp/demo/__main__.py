"""Talks to a finished run, or to two, in the browser: `python -m mmexp.demo run=outputs/llava15/...`."""

from __future__ import annotations

from importlib.util import find_spec

from mmexp.config import Invocation, check_own, launch
from mmexp.errors import ConfigError


def body(invocation: Invocation) -> None:
    """Takes the port, loads the runs, and shows the page until it is told to end."""
    from mmexp.answering import answering_run
    from mmexp.demo import DemoConfig, Desk, Speaker, load_examples
    from mmexp.demo.settings import password
    from mmexp.engine import setup_logging

    cfg = check_own(DemoConfig, invocation.cfg)
    if find_spec("gradio") is None:
        raise ConfigError("gradio not installed", expected="the extra demo", where="mmexp.demo",
                          fix='pip install "mmexp[demo]"')  # fmt: skip
    from mmexp.demo.server import run
    from mmexp.serve.server import bind, is_own

    setup_logging()
    listener = bind(cfg.host, cfg.port)
    auth = password(is_own(listener))
    runs = [answering_run(path, invocation.registered, ("data", "optim", "trainer", "logger")) for path in cfg.runs]
    speakers = [Speaker("/".join(found.path.resolve().parts[-3:]), exp.load_generator(found), cfg.limits)
                for found, exp in runs]  # fmt: skip
    examples = load_examples(runs[0][1].benchmarks, cfg.num_examples, speakers[0].prompts)
    run(Desk(speakers, cfg.limits), examples, listener, auth)


if __name__ == "__main__":
    launch(body, config_name="demo", module="mmexp.demo")
