"""Trains one stage, then evaluates it and writes its report."""

from __future__ import annotations

from mmexp.config import Invocation, launch


def body(invocation: Invocation) -> None:
    """Everything heavy is imported here, so that `--cfg job` and `--help` answer at once."""
    from mmexp.assemble import train

    train(invocation)


if __name__ == "__main__":
    launch(body, config_name="train", module="mmexp.train")
