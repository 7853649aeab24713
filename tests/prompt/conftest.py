"""Tokenizers and templates for the tests of this room."""

from __future__ import annotations

import pytest

from tests.shared_data import load_template, load_tokenizer


@pytest.fixture(scope="session")
def llama():
    return load_tokenizer("llama2")


@pytest.fixture(scope="session")
def qwen():
    return load_tokenizer("qwen")


@pytest.fixture(scope="session")
def vicuna():
    return load_template("vicuna_v1")


@pytest.fixture(scope="session")
def plain():
    return load_template("plain")


@pytest.fixture(scope="session")
def chatml():
    return load_template("chatml")
