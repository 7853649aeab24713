"""Trains one stage, evaluates it and writes its report: `python -m mmexp.train connector=linear stage=align`."""

from __future__ import annotations

import sys

from mmexp.config import Invocation, launch


def body(invocation: Invocation) -> None:
    """Everything heavy is imported here, so that `--cfg job` and `--help` answer at once."""
    from mmexp.assemble import train
    from mmexp.engine import Interrupted

    try:
        train(invocation)
    except Interrupted as stop:
        sys.stderr.write(f"stopped by {stop}; everything is saved, the same run_id or resume=<run> continues\n")
        raise SystemExit(128 + stop.signum) from None


if __name__ == "__main__":
    launch(body, config_name="train", module="mmexp.train")
