"""Examples are questions that the run was evaluated on, and their absence stops nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from mmexp.data import LlavaJsonConfig
from mmexp.demo import DemoConfig, load_examples
from mmexp.engine import Generator
from mmexp.evaluation import VqaConfig
from mmexp.serve.prompts import PromptMaker


@pytest.fixture
def prompts(generator: Generator) -> PromptMaker:
    return PromptMaker(generator.plan, DemoConfig(run="none", max_image_megapixels=0.01).limits)


def benchmark(folder: Path, name: str, count: int, size: int = 20) -> VqaConfig:
    """Questions `name 0`, `name 1`, ... about a picture, one row in front without a picture."""
    Image.new("RGB", (size, size), (9, 9, 9)).save(folder / f"{name}.png")
    said = [{"from": "human", "value": ""}, {"from": "gpt", "value": "yes"}]
    rows = [{"id": "words", "conversations": [{**said[0], "value": "words alone"}, said[1]]}]
    for at in range(count):
        asked = {"from": "human", "value": f"<image>\n{name} {at}"}
        rows.append({"id": f"{name}{at}", "image": f"{name}.png", "conversations": [asked, said[1]]})
    (folder / f"{name}.json").write_text(json.dumps(rows))
    data = LlavaJsonConfig(path=str(folder / f"{name}.json"), image_root=str(folder))
    return VqaConfig(splits={"val": data})


def test_they_come_from_every_benchmark_that_asks(tmp_path: Path, prompts: PromptMaker) -> None:
    benchmarks = {"one": benchmark(tmp_path, "one", 30), "two": benchmark(tmp_path, "two", 30)}
    found = load_examples(benchmarks, 8, prompts)
    asked = [example.question for example in found]
    assert {text.split()[0] for text in asked} == {"one", "two"}
    assert 5 <= len(asked) <= 8
    assert len(set(asked)) == len(asked)
    assert "words alone" not in asked
    assert found[0].picture == (tmp_path / "one.png").read_bytes()
    assert load_examples(benchmarks, 0, prompts) == []


def test_data_that_is_not_here_is_said_and_passed_over(
    tmp_path: Path, prompts: PromptMaker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mmexp"), "propagate", True)
    gone = VqaConfig(splits={"val": LlavaJsonConfig(path=str(tmp_path / "gone.json"))})
    large = benchmark(tmp_path, "large", 5, size=400)
    found = load_examples({"gone": gone, "large": large, "here": benchmark(tmp_path, "here", 5)}, 6, prompts)
    assert found
    assert {example.question.split()[0] for example in found} == {"here"}
    assert "no examples from gone" in caplog.text
    assert "no examples from large" in caplog.text
