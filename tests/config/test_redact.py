"""Nothing secret and no home path is written; what is written can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmexp.config import localize, parts_dir, redact, redact_overrides
from mmexp.config.redact import HERE, REDACTED


@pytest.mark.parametrize("key", ["api_key", "token", "hf_token", "secret", "password", "WANDB_API_KEY", "key"])
def test_values_under_secret_names_go(key: str) -> None:
    assert redact({"a": [{key: "planted"}]}) == {"a": [{key: REDACTED}]}


@pytest.mark.parametrize("key", ["max_length_tokens", "tokenizer", "num_keys", "name", "revision"])
def test_ordinary_names_stay(key: str) -> None:
    value = "0123456789abcdef0123456789abcdef01234567"
    assert redact({key: value}) == {key: value}


def test_special_tokens_of_a_tokenizer_are_no_secrets() -> None:
    assert redact({"image_token": "<image>", "pad_token": None}) == {"image_token": "<image>", "pad_token": None}


def test_secrets_of_the_environment_go_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-0123")
    assert "planted" not in str(redact({"name": "x planted-0123 y"}))
    assert redact_overrides(["name=aplanted-0123", "logger.wandb.api_key=short", "++a.token=b=c"]) == [
        f"name=a{REDACTED}",
        f"logger.wandb.api_key={REDACTED}",
        f"++a.token={REDACTED}",
    ]


def test_keys_that_look_like_keys_go() -> None:
    assert redact({"x": "see hf_abcdefghijklmnopqrstuv"}) == {"x": f"see {REDACTED}"}


def test_paths_go_and_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tree = {"a": f"{tmp_path}/runs/1", "b": [f"{parts_dir()}/vision", str(tmp_path)], "c": f"{tmp_path}x/y"}
    written = redact(tree)
    assert written == {"a": "~/runs/1", "b": [f"{HERE}/shapes/parts/vision", "~"], "c": f"{tmp_path}x/y"}
    assert localize(written) == tree
