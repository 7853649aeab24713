"""Previews need a tokenizer and data, and nothing of the LLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmexp.assemble import Experiment, experiment
from mmexp.config import compose
from mmexp.contracts import IGNORE
from mmexp.errors import ConfigError
from mmexp.present import preview_items
from tests.shared_data import shared

SKIP = ("n", "out", "evaluation", "optim", "trainer", "logger")
FIRST = "The large brown bear has a black nose."
CASES = [
    ("vicuna_v1", "llama2"),
    ("plain", "llama2"),
    ("llama2", "llama2"),
    ("minigpt4", "llama2"),
    ("qwen_vl", "qwen"),
    ("internlm2", "internlm2"),
]


def planned(*overrides: str) -> Experiment:
    return experiment(compose("preview", ["data=llava_json", "data.path=rows.json", *overrides]), SKIP)


@pytest.mark.parametrize(("template", "tokenizer"), CASES)
def test_real_photos_with_a_tokenizer_alone(template: str, tokenizer: str) -> None:
    exp = planned(
        f"template={template}",
        f"data.path={shared('annotations', 'llava_instruct.json')}",
        f"data.image_root={shared('images')}",
        f"llm.tokenizer={shared('tokenizers', tokenizer)}",
        "llm.path=/no/such/llm",
    )
    lines, entries = preview_items(exp, 5)
    assert [line["id"] for line in lines] == [entry.id for entry in entries]
    assert len(lines) == 5
    assert len(entries[0].images) == 1
    shown = [label for label in lines[0]["labels"] if label != IGNORE]
    assert FIRST in exp.prompt.tokenizer.decode(shown, skip_special_tokens=False)
    for line in lines:
        assert len(line["input_ids"]) == len(line["labels"])
        assert [medium["length"] for medium in line["media"]] == [36]


def test_without_a_tokenizer_of_its_own_the_llm_is_looked_at() -> None:
    with pytest.raises(ConfigError, match="no such folder: /no/such/llm"):
        _ = planned("llm.path=/no/such/llm").prompt


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ConfigError, match=r"weights\.bin") as error:
        _ = planned(f"llm.tokenizer={tmp_path}").prompt.tokenizer
    assert error.value.where == "llm.tokenizer"
    with pytest.raises(ConfigError, match="no such folder") as error:
        _ = planned(f"llm.tokenizer={tmp_path}/gone").prompt.tokenizer
    assert error.value.where == "llm.tokenizer"


def test_training_refuses_a_tokenizer_that_the_llm_has_no_rows_for() -> None:
    with pytest.raises(ConfigError, match="rows of the LLM's embedding table") as error:
        _ = planned(f"llm.tokenizer={shared('tokenizers', 'internlm2')}", "template=internlm2").plan.tokenizer
    assert "tokenizer that belongs to these weights" in error.value.fix


def test_tags_of_a_template_come_on_top_of_the_vocabulary() -> None:
    plan = planned("template=vicuna_v1", "template.new_tokens=['<img>','</img>']").plan
    assert list(plan.new_ids) == [plan.tokenizer.control_id("<img>"), plan.tokenizer.control_id("</img>")]
    assert plan.empty().llm.model.config.vocab_size == plan.spec.vocab_size + 2
