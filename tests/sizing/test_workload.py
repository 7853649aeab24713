"""Where lengths and numbers of samples come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from mmexp.data import LlavaJsonConfig
from mmexp.prompt import DynamicTiles
from mmexp.sizing import synthetic_batch, workload_of


def test_rows_that_are_here_are_tokenised(make_small: Callable[..., Any], rows: LlavaJsonConfig) -> None:
    plan = make_small().plan
    found = workload_of(plan, rows)
    dataset = rows.build()
    lengths = [len(plan.processor.encode(dataset[index]).input_ids) for index in range(8)]
    assert (found.num_rows, found.media, found.tokens) == (8, 7 / 8, sum(lengths) / 8)
    assert found.long_tokens == max(lengths)
    assert found.source == "8 of the 8 rows, tokenised"


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """An LLM whose tokenizer is on a hub."""

    inner: Any
    path: str = "nobody/nothing"

    def spec(self) -> Any:
        return self.inner.spec()


def test_words_are_counted_without_a_tokenizer(make_small: Callable[..., Any], rows: LlavaJsonConfig) -> None:
    plan = make_small().plan
    found = workload_of(replace(plan, llm=Elsewhere(inner=plan.llm)), rows)
    assert found.source == "the words of all 8 rows, 1.4 tokens each"
    assert (found.num_rows, found.media) == (8, 7 / 8)
    assert 4 * 7 / 8 < found.tokens < found.long_tokens


def test_published_corpora_are_known(make_small: Callable[..., Any]) -> None:
    found = workload_of(make_small().plan, LlavaJsonConfig(path="/nowhere/llava_v1_5_mix665k.json"))
    assert found.num_rows == 665_298
    assert found.source == "what is known of the published corpus"


def test_without_anything_the_limit_is_an_upper_bound(make_small: Callable[..., Any]) -> None:
    found = workload_of(make_small().plan, LlavaJsonConfig(path="/nowhere/rows.json"))
    assert (found.num_rows, found.tokens) == (None, 512)
    assert "upper bound" in found.source


def test_the_user_goes_first(make_small: Callable[..., Any], rows: LlavaJsonConfig) -> None:
    found = workload_of(make_small().plan, rows, num_tokens=100, num_rows=7)
    assert (found.num_rows, found.tokens, found.long_tokens) == (7, 100, 100)
    assert 0 < found.supervised <= 100


@pytest.mark.parametrize("media", [0, 0.5, 1, 2])
def test_a_synthetic_batch_fits_the_model(make_small: Callable[..., Any], media: float) -> None:
    import torch

    small = make_small()
    batch = synthetic_batch(small.plan, 4, 40, 10, media)
    assert batch.num_tokens == 160
    assert batch.num_supervised == 40
    real = replace(batch, media={name: torch.zeros(value.shape) for name, value in batch.media.items()})
    assert small.model(real=True)(real).hidden.shape == (1, 160, 32)
    assert len(real.media.get("image", ())) == 4 * media


def test_tiles_count_with_their_largest_number(make_small: Callable[..., Any]) -> None:
    small = make_small(tiling=DynamicTiles(max_tiles=4))
    batch = synthetic_batch(small.plan, 2, 40, 10, 1)
    assert batch.media["image"].shape[0] == 2 * 5
    assert small.size()[0].peak > make_small().size()[0].peak
