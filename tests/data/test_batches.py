"""Sampler and collator: nothing lost, nothing doubled, and every field of a batch agrees with its items."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmexp.contracts import IGNORE
from mmexp.data import Collator, DropCounts, Dropped, RunOrder, RunSampler, TrainingData
from mmexp.data.collate import EMPTY
from mmexp.data.order import Shuffled
from mmexp.data.packing import next_fit
from mmexp.errors import ConfigError, DataError
from tests.data.samples import Samples, make_processor, make_sample, mixed

SMALL = st.integers(1, 7)


@settings(max_examples=80, deadline=None)
@given(
    num_samples=st.integers(1, 40),
    batch_size=SMALL,
    world_size=st.integers(1, 4),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_every_epoch_holds_every_sample_once(num_samples, batch_size, world_size, epochs, seed):
    count = -(-num_samples * epochs // (batch_size * world_size))
    ranks = [
        list(
            RunSampler(
                order=RunOrder(Shuffled(num_samples, seed)),
                batch_size=batch_size,
                num_micro_batches=count,
                rank=rank,
                world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]
    stream = [index for step in zip(*ranks, strict=True) for batch in step for index in batch]
    for epoch in range(epochs):
        assert sorted(stream[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))
    assert len(stream) - epochs * num_samples < batch_size * world_size


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 20), seed=st.integers(0, 3))
def test_resumed_sampler_goes_on(position, seed):
    settings_ = {"batch_size": 3, "num_micro_batches": 20}
    whole = RunSampler(order=RunOrder(Shuffled(13, seed)), **settings_)
    rest = RunSampler(order=RunOrder(Shuffled(13, seed)), **settings_, position=position)
    assert list(rest) == list(whole)[position:]
    assert len(rest) == 20


def test_epochs_and_seeds_differ_and_global_rng_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = [RunSampler(order=RunOrder(Shuffled(50, seed)), batch_size=50, num_micro_batches=2) for seed in (0, 1)]
    orders = [tuple(batch) for sampler in first for batch in sampler]
    assert len(set(orders)) == 4
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(scope="module")
def items():
    data = TrainingData(mixed(6), make_processor())
    return [data[index] for index in range(6)]


@pytest.mark.parametrize(("row", "capacity"), [("flat", 0), ("padded", 0), ("packed", 60), ("packed", 999)])
def test_batch_agrees_with_its_items(items, row, capacity):
    batch = Collator(pad_id=0, row=row, capacity=capacity)(items)
    assert batch.ids == tuple(item.id for item in items)
    assert batch.datasets == ("demo",) * len(items)
    if row == "packed":
        assert batch.input_ids.shape[1] <= capacity
        assert batch.input_ids.shape[0] == len(next_fit([len(item.input_ids) for item in items], capacity))
        assert batch.input_ids.shape[0] == 1 if capacity == 999 else 1 < batch.input_ids.shape[0] < 6
    else:
        assert batch.input_ids.shape[0] == (1 if row == "flat" else len(items))
    assert batch.num_tokens == sum(len(item.input_ids) for item in items)
    for item, (number, start, end) in zip(items, batch.spans(), strict=True):
        assert torch.equal(batch.input_ids[number, start:end], item.input_ids)
        assert torch.equal(batch.labels[number, start + 1 : end], item.labels[1:])
        assert batch.labels[number, start] == IGNORE
        assert batch.positions[number, start:end].tolist() == list(range(end - start))
        slots = torch.zeros(end - start, dtype=torch.bool)
        for run in item.runs:
            slots[run.start : run.start + run.length] = True
        assert torch.equal(batch.slots["image"][number, start:end], slots)
    assert batch.num_supervised == sum(item.num_supervised for item in items)
    assert batch.media["image"][:, 0, 0, 0].tolist() == [1, 1, 2, 1, 1, 2]
    assert batch.media_owners["image"] == ("1", "2", "2", "4", "5", "5")
    assert batch.slot_lengths["image"] == (4,) * 6
    assert int(batch.slots["image"].sum()) == 24


def test_padding_carries_nothing(items):
    batch = Collator(pad_id=9, row="padded")(items)
    covered = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    for number, start, end in batch.spans():
        covered[number, start:end] = True
    assert (batch.input_ids[~covered] == 9).all()
    assert (batch.labels[~covered] == IGNORE).all()
    assert not batch.slots["image"][~covered].any()


def test_text_only_batch_has_no_slots():
    batch = Collator(pad_id=0)([TrainingData(Samples([make_sample("t")]), make_processor())[0]])
    assert batch.slots == {}
    assert batch.media == {}


def test_dropped_samples_leave_only_their_ids(items):
    drop = Dropped(reason="too_long", id="long")
    batch = Collator(pad_id=0)([items[0], drop, items[1]])
    assert batch.ids == ("0", "1")
    assert batch.dropped == {"too_long": ("long",)}
    empty = Collator(pad_id=0)([drop, Dropped(reason="no_supervision", id="mute")])
    assert empty.ids == (EMPTY,)
    assert empty.num_supervised == 0
    assert empty.input_ids.shape == (1, 1)
    assert empty.dropped == {"too_long": ("long",), "no_supervision": ("mute",)}


def test_media_of_different_shapes_are_named(items):
    from dataclasses import replace

    odd = replace(items[1], id="odd", media={"image": (torch.zeros(3, 5, 5),)})
    with pytest.raises(DataError, match="5, 5") as error:
        Collator(pad_id=0)([items[1], odd])
    assert "'odd'" in error.value.where


def test_unknown_row_layout():
    with pytest.raises(ConfigError, match="flat, padded, packed or shared"):
        Collator(pad_id=0, row="ragged")
    with pytest.raises(ConfigError, match="1 token or more"):
        Collator(pad_id=0, row="packed")


def test_drops_are_counted_and_capped():
    samples = Samples([*mixed(95), *(make_sample(f"mute{n}", " ") for n in range(5))])
    data, counts, collate = TrainingData(samples, make_processor()), DropCounts(min_seen=50), Collator(pad_id=0)
    for start in range(0, 95, 5):
        counts.update(collate([data[index] for index in range(start, start + 5)]))
    assert counts.num_seen == 95
    with pytest.raises(DataError, match="no_supervision") as error:
        counts.update(collate([data[index] for index in range(95, 100)]))
    assert "'demo/mute0'" in error.value.where
    assert counts.by_dataset == {"demo": {"no_supervision": 5}}
    assert counts.num_seen == 100
    assert Counter(counts.dropped) == {"no_supervision": 5}
