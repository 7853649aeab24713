"""What is found in one sample, for every kind of connector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mmexp.contracts import Sample, Text, Turn
from mmexp.engine import Generator
from mmexp.errors import ConfigError, DataError
from mmexp.inspection import choose, look_inside, require_visible, rows, write_pictures
from mmexp.inspection.colours import is_rising, palette
from mmexp.inspection.look import spread_evenly
from mmexp.llm import Sampling, TinyLlmConfig
from mmexp.prompt import AnyRes
from tests.inspection.models import CONNECTORS, dotted, looked, make_model, make_plan, make_sample

SOFT = {"linear": 16, "qformer": 4, "perceiver": 3, "resampler": 4}


@pytest.mark.parametrize("name", CONNECTORS)
def test_shapes_and_sums(name: str) -> None:
    found = looked(name)
    count = len(found.tokens)
    assert found.attention.shape == (count, 2, 2, 1, SOFT[name])
    assert 0 < found.attention.sum((-1, -2)).max() < 1
    assert found.grid == (4, 4)
    over = found.over_picture
    assert over is not None
    assert over.shape == (count, 2, 2, 1, 16)
    if name in ("qformer", "resampler"):
        torch.testing.assert_close(over.sum(-1), found.attention.sum(-1))
    assert len(found.near) == SOFT[name]
    assert sorted(found.lens) == [0, 1, 2]
    assert found.slot_of == list(range(SOFT[name]))
    assert (found.queries is None) == (name == "linear")
    assert found.views[0].window == (0.0, -0.5, 1.0, 1.5)
    assert found.target == "A dot."


@pytest.mark.parametrize("name", CONNECTORS)
def test_the_answer_is_that_of_chat_and_evaluation(name: str) -> None:
    plan = make_plan(CONNECTORS[name])
    model, sample = make_model(plan), make_sample(dotted((120, 60), (0.3, 0.5)), answer=None)
    found = look_inside(model, plan, sample, max_new_tokens=6)
    assert [found.answer] == Generator(model, plan).predict([sample], Sampling(max_new_tokens=6))


def test_attention_is_that_of_one_pass_of_transformers() -> None:
    plan = make_plan()
    model, sample = make_model(plan), make_sample(dotted((60, 60), (0.3, 0.5)))
    found = look_inside(model, plan, sample, max_new_tokens=1)
    generator = Generator(model, plan)
    item = plan.processor.encode_prompt(sample.turns[:1])
    model.llm.model.set_attn_implementation("eager")
    with torch.no_grad():
        embeds, _ = model.embed(generator.collate([item]))
        weights = model.llm.model.get_decoder()(inputs_embeds=embeds, output_attentions=True).attentions
    (run,) = item.runs
    expected = torch.stack(weights)[:, 0, :, -1, run.start : run.start + 16]
    torch.testing.assert_close(found.attention[0, :, :, 0], expected)


def test_several_views_are_drawn_apart() -> None:
    plan = make_plan(tiling=AnyRes(grids=((2, 1),)))
    found = look_inside(make_model(plan), plan, make_sample(dotted((160, 80), (0.3, 0.5))), max_new_tokens=2)
    assert [view.window for view in found.views] == [(0, 0, 1, 1), (0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    assert found.attention.shape[-2:] == (3, 16)


def test_pictures_are_written(tmp_path: Path) -> None:
    files = write_pictures(replace(looked("qformer"), id="a/b c"), tmp_path / "new")
    assert [file.name for file in files] == ["a_b_c_tokens.png", "a_b_c_layers.png", "a_b_c_queries.png"]
    with Image.open(files[2]) as sheet:
        assert sheet.width == 4 * 230 + 10
    assert len(write_pictures(looked("linear"), tmp_path)) == 2


def test_what_cannot_be_looked_into_is_said_before_weights_are_read() -> None:
    with pytest.raises(ConfigError, match="no image branch"):
        require_visible(make_plan(inputs={}))
    t5 = SimpleNamespace(spec=replace(TinyLlmConfig().spec(), reads_apart=True, model_type="t5"), inputs={})
    with pytest.raises(ConfigError, match="t5 reads with an encoder"):
        require_visible(t5)  # type: ignore[arg-type]
    t5.spec = replace(t5.spec, width=0, reads_apart=False)
    with pytest.raises(ConfigError, match="no LLM"):
        require_visible(t5)  # type: ignore[arg-type]


def test_a_sample_without_a_picture_is_refused() -> None:
    plan = make_plan()
    sample = Sample(id="dull", turns=(Turn(role="user", parts=(Text(text="Hello?"),)),))
    with pytest.raises(DataError, match=r"sample dull: no question about a picture"):
        look_inside(make_model(plan), plan, sample)


def test_samples_are_chosen() -> None:
    data = [replace(make_sample(dotted((8, 8), (0.5, 0.5))), id=f"s{at}") for at in range(10)]
    assert [sample.id for sample in choose(data, 4, (), "x")] == ["s0", "s2", "s5", "s7"]
    assert [sample.id for sample in choose(data, 4, ("s7", "s1"), "x")] == ["s7", "s1"]
    with pytest.raises(DataError, match="no sample s99"):
        choose(data, 4, ("s7", "s99"), "x")
    with pytest.raises(DataError, match="no samples"):
        choose([], 4, (), "x")
    source = SimpleNamespace(build=lambda: data)
    bench = SimpleNamespace(needs="generate", splits={"val": source, "test": SimpleNamespace(build=lambda: data[:1])})
    assert rows({"vqa": bench}, None, None) == ("vqa on val", data)
    assert rows({"vqa": bench}, None, "test") == ("vqa on test", data[:1])
    assert rows({"match": SimpleNamespace(needs="embed")}, source, None) == ("training data", data)
    with pytest.raises(ConfigError, match="val, test"):
        rows({"vqa": bench}, None, "train")
    with pytest.raises(ConfigError, match="no benchmark"):
        rows({}, source, "train")


def test_evenly_spread() -> None:
    assert spread_evenly(33, 5) == [0, 8, 16, 24, 32]
    assert spread_evenly(3, 8) == [0, 1, 2]
    assert spread_evenly(5, 1) == [0]


def test_more_is_lighter_whatever_the_hue() -> None:
    assert is_rising()
    assert palette()[0, 3] == 0
    assert (palette()[1:, 3] >= palette()[:-1, 3]).all()
