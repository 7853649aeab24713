"""Serves a finished run as OpenAI's API: `python -m mmexp.serve run=outputs/llava15/... port=8000`."""

from __future__ import annotations

from importlib.util import find_spec

from mmexp.config import Invocation, check_own, launch
from mmexp.errors import ConfigError


def body(invocation: Invocation) -> None:
    """Takes the port, loads the run, and answers until it is told to end."""
    from mmexp.answering import answering_run
    from mmexp.engine import setup_logging
    from mmexp.serve import Desk, ServeConfig

    cfg = check_own(ServeConfig, invocation.cfg)
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} not installed", expected="the extra serve", where="mmexp.serve",
                          fix='pip install "mmexp[serve]"')  # fmt: skip
    from mmexp.serve.server import bind, run

    setup_logging()
    found, exp = answering_run(cfg.run, invocation.registered)
    listener = bind(cfg.host, cfg.port)
    name = cfg.model or "/".join(found.path.resolve().parts[-3:])
    run(Desk(exp.load_generator(found), cfg, name), listener)


if __name__ == "__main__":
    launch(body, config_name="serve", module="mmexp.serve")
