"""Samples about the same picture in one row: which ones, how they are laid out, and that nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmexp.contracts import IGNORE, Item, LlmSpec, Medium, Sample, Text, Turn
from mmexp.data import Collator, DropCounts, OrderSettings, build_order
from mmexp.data.sharing import SharedRows, groups_of, require_shareable
from mmexp.errors import ConfigError
from mmexp.objective import NextTokenConfig
from tests.data.samples import Samples, make_processor, make_sample


def about(name: str, *files: str, question: str = "q", answer: str = "yes") -> Sample:
    media = tuple(Medium(source=file) for file in files)
    user = Turn(role="user", parts=(*media, Text(text=question)))
    return Sample(id=name, dataset="demo", turns=(user, Turn(role="assistant", parts=(Text(text=answer),))))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        Image.new("RGB", (number + 1, 1)).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(3)]


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    most=st.integers(1, 5),
    seed=st.integers(0, 5),
    two=st.booleans(),
)
def test_rows_hold_every_sample_once_beside_its_own(groups: list[int], most: int, seed: int, two: bool) -> None:
    numbers = np.asarray(groups)
    drawn = np.random.default_rng(seed).permutation(len(groups))
    kinds = drawn % 2 if two else None
    samples, counts = SharedRows(groups=numbers, most=most).pack(drawn, 0, kinds=kinds)
    assert sorted(samples) == list(range(len(groups)))
    assert max(counts) <= most
    assert counts.sum() == len(groups)
    rows = np.split(samples, np.cumsum(counts)[:-1])
    keys = [{(numbers[sample], sample % 2 if two else 0) for sample in row} for row in rows]
    assert all(len(key) == 1 for key in keys)
    flat = [next(iter(key)) for key in keys]
    for key in set(flat):
        held = [len(row) for row, own in zip(rows, flat, strict=True) if own == key]
        assert all(size == most for size in held[:-1]), "a row is left only when it is full"


def test_rows_of_many_samples_come_no_earlier() -> None:
    numbers = np.asarray([0] * 50 + list(range(1, 51)))
    places = []
    for seed in range(200):
        drawn = np.random.default_rng(seed).permutation(100)
        _, counts = SharedRows(groups=numbers, most=100).pack(drawn, 0)
        places.append(counts.argmax())
    assert 20 < np.mean(places) < 31  # of 51 rows


def test_which_rows_show_the_same(files: list[str]) -> None:
    data = Samples([
        about("a", files[0]), about("b"), about("c", files[1]), about("d", files[0]), about("e"),
        about("f", files[0], files[1]), about("g", files[1], files[0]), make_sample("h", widths=(1,)),
    ])  # fmt: skip
    groups = groups_of(data)
    assert groups[0] == groups[3]
    assert len(set(groups.tolist())) == 7


def test_a_run_takes_pictures_with_all_their_texts(files: list[str]) -> None:
    data = Samples(about(f"{n}", files[n % 3], question=f"q{n}") for n in range(12))
    order = build_order(data, make_processor(), OrderSettings(seed=0, micro_batch_size=1, row="shared"))
    assert order.num_rows(1) == 3
    rows = [order.take(at, at + 1) for at in range(6)]
    assert sorted(sorted(row) for row in rows[:3]) == [[n, n + 3, n + 6, n + 9] for n in range(3)]
    assert [set(row) for row in rows[:3]] != [set(row) for row in rows[3:]] or rows[:3] != rows[3:]
    few = build_order(data, make_processor(), OrderSettings(seed=0, micro_batch_size=1, row="shared", max_shared=3))
    assert few.num_rows(1) == 6
    assert few.identity != order.identity


def encoded(samples: list[Sample], **changes: Any) -> list[Item]:
    processor = replace(make_processor(), **changes)
    return [processor.encode(sample) for sample in samples]


def test_a_beginning_is_laid_out_once(files: list[str]) -> None:
    samples = [about("a", files[0], question="one"), about("b", files[0], question="other", answer="no"),
               about("c"), about("d", files[1]), about("e", files[2])]  # fmt: skip
    items = encoded(samples)
    batch = Collator(pad_id=0, row="shared")(items)
    flat = Collator(pad_id=0)(items)
    assert batch.ids == flat.ids == tuple("abcde")
    assert batch.num_supervised == flat.num_supervised
    (lengths,), (followers,) = batch.segment_lengths, batch.followers
    shared = lengths[0]
    assert followers == (2, 0, 0, 0, 0, 0)
    assert shared >= 5, "the picture, and the o of both questions"
    assert [*lengths[1:3], *lengths[3:]] == [len(items[0].labels) - shared, len(items[1].labels) - shared,
                                             *(len(item.labels) for item in items[2:])]  # fmt: skip
    assert batch.num_tokens == flat.num_tokens - shared
    assert len(batch.media["image"]) == len(flat.media["image"]) - 1
    assert batch.media_owners["image"] == ("a", "d", "e")
    assert int(batch.slots["image"].sum()) == 12
    assert batch.previous is not None
    for row in (batch, flat):  # what is predicted from what
        labels = row.labels.flatten()
        places = (labels != IGNORE).nonzero().flatten()
        before = places - 1 if row.previous is None else row.previous[places]
        assert (row.positions.flatten()[places] == row.positions.flatten()[before] + 1).all()
    assert torch.equal(batch.labels[batch.labels != IGNORE], flat.labels[flat.labels != IGNORE])


def test_a_beginning_ends_before_what_carries_loss(files: list[str]) -> None:
    captions = [about("a", files[0], question="", answer="a cat"), about("b", files[0], question="", answer="a car")]
    items = encoded(captions)
    batch = Collator(pad_id=0, row="shared")(items)
    assert batch.num_supervised == sum(item.num_supervised for item in items)
    (lengths,) = batch.segment_lengths
    assert lengths[1] == lengths[2] == items[0].num_supervised
    assert batch.previous is not None
    assert int(batch.previous[lengths[0]]) == int(batch.previous[lengths[0] + lengths[1]]) == lengths[0] - 1


@pytest.mark.parametrize(
    "samples",
    [
        lambda files: [about("a", files[0]), about("b", files[1])],  # other pictures
        lambda files: [about("a"), about("b")],  # none
        lambda files: [about("a", files[0]), about("b", files[1]), about("c", files[0])],  # not side by side
    ],
)
def test_what_has_nothing_in_common_stays_apart(files: list[str], samples: Any) -> None:
    items = encoded(samples(files))
    batch, flat = Collator(pad_id=0, row="shared")(items), Collator(pad_id=0)(items)
    assert batch.followers == ()
    assert batch.previous is None
    assert batch.segment_lengths == flat.segment_lengths
    assert torch.equal(batch.input_ids, flat.input_ids)
    assert batch.prompt_lengths == flat.prompt_lengths


def test_a_picture_behind_other_words_is_not_shared(files: list[str]) -> None:
    def late(name: str, words: str) -> Sample:
        user = Turn(role="user", parts=(Text(text=words), Medium(source=files[0])))
        return Sample(id=name, dataset="demo", turns=(user, Turn(role="assistant", parts=(Text(text="yes"),))))

    batch = Collator(pad_id=0, row="shared")(encoded([late("a", "one"), late("b", "two")]))
    assert batch.followers == ()
    assert len(batch.media["image"]) == 2


def test_samples_of_a_shared_batch_are_counted(files: list[str]) -> None:
    batch = Collator(pad_id=0, row="shared")(encoded([about(str(n), files[0], question=f"q{n}") for n in range(4)]))
    counts = DropCounts()
    counts.update(batch)
    assert counts.num_seen == 4


def test_what_cannot_share_is_refused() -> None:
    spec = LlmSpec(width=8, vocab_size=9, max_length_tokens=10, model_type="t5", reads_apart=True)
    with pytest.raises(ConfigError, match="shared, with an LLM of type t5"):
        require_shareable(spec, NextTokenConfig())
    spec = replace(spec, model_type="llama", shares_beginnings=True)
    require_shareable(spec, NextTokenConfig())
    with pytest.raises(ConfigError, match="shared, with PosixPath"):
        require_shareable(spec, Path("elsewhere"))
    with pytest.raises(ConfigError, match=r"length while processor\.row is shared"):
        OrderSettings(seed=0, micro_batch_size=1, row="shared", order="length")
    with pytest.raises(ConfigError, match="max_shared"):
        OrderSettings(seed=0, micro_batch_size=1, row="shared", max_shared=0)


def test_answers_to_one_sample_share_its_words(files: list[str]) -> None:
    items = encoded([about("a", question="Which?", answer=answer) for answer in ("left", "right")])
    batch = Collator(pad_id=0, row="shared")(items)
    assert batch.followers == ((2, 0, 0),)
    assert batch.num_tokens == sum(len(item.labels) for item in items) - batch.segment_lengths[0][0]


@pytest.mark.parametrize("views", [False, True])
def test_a_tensor_that_several_items_hold_is_there_once(files: list[str], views: bool) -> None:
    first, other = encoded([about("a", files[0]), about("b", files[1])])
    if views:  # of two and of three views, as tiles are
        first, other = (
            replace(item, media={"image": (torch.stack([item.media["image"][0]] * count),)}, views={"image": (count,)})
            for item, count in ((first, 2), (other, 3))
        )
    items = [other, first, replace(other, id="c"), first]
    batch = Collator(pad_id=0, row="padded")(items)
    values = [item.media["image"][0] if views else item.media["image"][0][None] for item in items]
    assert torch.equal(batch.media["image"], torch.cat([values[0], values[1]]))
    assert torch.equal(batch.media["image"][batch.order["image"]], torch.cat(values))
    apart = Collator(pad_id=0, row="padded")(encoded([about("a", files[0]), about("b", files[0])]))
    assert len(apart.media["image"]) == 2
    assert not apart.order
