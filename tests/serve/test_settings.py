"""What the command refuses before it loads anything."""

from __future__ import annotations

from typing import Any

import pytest

from mmexp.config import check_own, compose, own_keys
from mmexp.errors import ConfigError
from mmexp.serve import ServeConfig


def test_the_file_of_defaults_has_those_of_the_class() -> None:
    cfg = compose("serve", ["run=somewhere"]).cfg
    assert check_own(ServeConfig, cfg) == ServeConfig(run="somewhere")
    assert set(cfg) == set(own_keys(ServeConfig))
    assert ServeConfig(run="r").host == "127.0.0.1"


def test_every_number_out_of_range_is_told() -> None:
    wrong: dict[str, Any] = {"port": 70000, "max_batch": 0, "timeout_s": float("nan"), "max_queue": -1, "model": " "}
    with pytest.raises(ConfigError) as caught:
        ServeConfig(run="r", **wrong)
    assert {error.where for error in caught.value.errors} == wrong.keys()


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmexp.serve import __main__ as command

    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="fastapi and uvicorn not installed") as caught:
        command.body(compose("serve", ["run=somewhere"]))
    assert caught.value.fix == 'pip install "mmexp[serve]"'
