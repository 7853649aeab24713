"""Trains one stage, evaluates it and writes its report: `python -m mmexp.train connector=linear stage=align`."""

from __future__ import annotations

from mmexp.config import Invocation, launch


def body(invocation: Invocation) -> None:
    """Everything heavy is imported here, so that `--cfg job` and `--help` answer at once."""
    from mmexp.assemble import train
    from mmexp.engine import Interrupted

    try:
        train(invocation)
    except Interrupted as stop:
        raise SystemExit(128 + stop.signum) from None


if __name__ == "__main__":
    launch(body, config_name="train", module="mmexp.train")
