"""Prompts about the same picture are answered together, as if each were alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, OPTConfig, Qwen2Config

from mmexp.contracts import MediaRun, Medium, Sample, Text, Turn
from mmexp.engine import Generator, StageJob
from mmexp.llm import Sampling
from mmexp.llm.causal import empty_llm
from mmexp.prompt import common_length

SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "max_position_embeddings": 512,
}
QUESTIONS = ("What?", "What colour is the thing on the left?", "Where?", "What?", "Is there a star?")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Five questions about one picture and two about another, mixed, one text alone, and two pictures in one."""
    for name, colour in (("a", (200, 30, 30)), ("b", (20, 40, 220))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    first, second = (Medium(source=str(tmp_path / f"{name}.png")) for name in "ab")

    def ask(name: str, text: str, *media: Medium) -> Sample:
        return Sample(id=name, turns=(Turn(role="user", parts=(*media, Text(text=text))),))

    asked = [ask(f"a{index}", text, first) for index, text in enumerate(QUESTIONS)]
    others = [ask("b0", "What?", second), ask("b1", "Where is it?", second)]
    rest = [ask("text", "Hello?"), ask("both", "Same?", first, second)]
    return [asked[0], others[0], *asked[1:3], rest[0], others[1], *asked[3:], rest[1]]


def llm_of(kind: str, vocab_size: int) -> Any:
    configs = {
        "llama": LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, vocab_size=vocab_size),
        "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, vocab_size=vocab_size),
        "qwen2": Qwen2Config(**SIZES, intermediate_size=48, num_key_value_heads=4, vocab_size=vocab_size),
    }
    torch.manual_seed(3)
    llm = empty_llm(configs[kind])
    for parameter in llm.parameters():  # large enough that attention decides what is said
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return llm


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "opt", "qwen2"])
def test_together_is_as_alone(
    make_job: Callable[..., StageJob], samples: Sequence[Sample], kind: str, beams: int
) -> None:
    plan = make_job().plan
    torch.manual_seed(0)
    model = plan.build().eval()
    width, rows = model.llm.model.get_input_embeddings().weight.shape[::-1]
    assert width == SIZES["hidden_size"]
    model.llm = llm_of(kind, rows).eval()
    generator = Generator(model, plan)
    sampling = Sampling(max_new_tokens=12, num_beams=beams)
    alone = [generator.predict([sample], sampling)[0] for sample in samples]
    looked: list[int] = []
    model.inputs["image"].register_forward_pre_hook(lambda module, args: looked.append(len(args[0])))
    assert generator.predict(samples, sampling) == alone
    assert looked == [4]  # a, b, and both in one sample
    assert len(set(alone)) > 3  # else equality would say little


def test_a_sliding_window_is_answered_apart(make_job: Callable[..., StageJob], samples: Sequence[Sample]) -> None:
    plan = make_job().plan
    model = plan.build().eval()
    model.llm.model.config.sliding_window = 64
    looked: list[int] = []
    model.inputs["image"].register_forward_pre_hook(lambda module, args: looked.append(len(args[0])))
    Generator(model, plan).predict(samples, Sampling(max_new_tokens=2))
    assert looked == [9]


def test_what_prompts_have_in_common() -> None:
    runs = [MediaRun(modality="image", start=1, length=2)]
    assert common_length([[1, 0, 0, 5, 6], [1, 0, 0, 5, 7]], [runs, runs]) == 4
    assert common_length([[1, 0, 0, 5, 6], [1, 0, 0, 5]], [runs, runs]) == 3  # each keeps a token of its own
    assert common_length([[1, 0, 0, 5]], [runs]) == 3
    assert common_length([[2, 0, 0, 5], [1, 0, 0, 5]], [runs, runs]) == 0
    late = [replace(runs[0], start=2)]
    assert common_length([[1, 2, 0, 0, 6], [1, 3, 0, 0, 6]], [late, late]) == 0
    assert common_length([[1, 0, 0, 0, 6], [1, 0, 0, 0, 6]], [runs, late]) == 0
