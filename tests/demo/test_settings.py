"""Who may see the page, and which numbers make sense."""

from __future__ import annotations

import pytest

from mmexp.config import check_own, compose, own_keys
from mmexp.demo import DemoConfig
from mmexp.demo.settings import AUTH, password
from mmexp.errors import ConfigError


def test_an_open_address_needs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AUTH, raising=False)
    assert password(is_own=True) is None
    with pytest.raises(ConfigError, match=r"(?s)no password is set.*try: MMEXP_DEMO_AUTH=user:password"):
        password(is_own=False)
    monkeypatch.setenv(AUTH, "me:a:b")
    assert password(is_own=False) == password(is_own=True) == ("me", "a:b")


@pytest.mark.parametrize("given", ["hunter2", "hunter2:", ":hunter2", ""])
def test_half_a_password_is_none_and_is_not_shown(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(AUTH, given)
    for is_own in (True, False):
        with pytest.raises(ConfigError, match="expected: user:password") as caught:
            password(is_own)
        assert "hunter2" not in str(caught.value)


def test_one_run_or_two() -> None:
    assert DemoConfig(run="a").runs == ("a",)
    assert DemoConfig(run=("a", "b")).runs == ("a", "b")
    for runs in ((), ("a", "b", "c")):
        with pytest.raises(ConfigError, match="one run directory, or two"):
            DemoConfig(run=runs)


def test_every_wrong_number_is_told() -> None:
    with pytest.raises(ConfigError, match=r"(?s)max_tokens.*max_image_mb|max_image_mb.*max_tokens"):
        DemoConfig(run="a", max_tokens=0, max_image_mb=-1)
    with pytest.raises(ConfigError, match="num_examples"):
        DemoConfig(run="a", num_examples=-1)


def test_the_file_of_defaults_has_those_of_the_class() -> None:
    cfg = compose("demo", ["run=somewhere"]).cfg
    assert check_own(DemoConfig, cfg) == DemoConfig(run="somewhere")
    assert set(cfg) == set(own_keys(DemoConfig))
    assert DemoConfig(run="r").host == "127.0.0.1"
    assert check_own(DemoConfig, compose("demo", ["run=[a,b]"]).cfg).runs == ("a", "b")


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmexp.demo import __main__ as command

    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="gradio not installed") as caught:
        command.body(compose("demo", ["run=somewhere"]))
    assert caught.value.fix == 'pip install "mmexp[demo]"'
