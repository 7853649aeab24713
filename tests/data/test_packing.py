"""Packing: rows never too long, nothing lost, well filled, and laid out as planned; lengths counted once."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmexp.contracts import Item
from mmexp.data import Collator, OrderSettings, TrainingData, build_order
from mmexp.data.dataset import Dropped
from mmexp.data.lengths import processor_fingerprint, token_lengths
from mmexp.data.mixture import Mixture, Part
from mmexp.data.packing import Packer, best_fit, next_fit
from mmexp.errors import DataError
from mmexp.prompt import ChatTemplate
from tests.data.samples import Samples, make_processor, make_sample, mixed

LENGTHS = st.lists(st.integers(0, 50), min_size=1, max_size=80)


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, capacity=st.integers(50, 120))
def test_best_fit_loses_nothing_and_keeps_the_limit(lengths, capacity):
    rows = best_fit(lengths, capacity)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    fills = [sum(lengths[place] for place in row) for row in rows]
    assert max(fills) <= capacity
    assert all(one + other > capacity for n, one in enumerate(fills) for other in fills[n + 1 :] if one and other) or (
        len(rows) <= -(-11 * -(-sum(lengths) // capacity) // 9) + 4
    )


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, capacity=st.integers(50, 120), data=st.data())
def test_laying_out_packed_rows_one_behind_the_other_needs_no_more_rows(lengths, capacity, data):
    rows = data.draw(st.permutations(best_fit(lengths, capacity)))
    flat = [lengths[place] for row in rows for place in row]
    counts = next_fit(flat, capacity)
    assert sum(counts) == len(flat)
    assert len(counts) <= len(rows)
    ends = np.cumsum(counts)
    assert all(sum(flat[end - count : end]) <= capacity for end, count in zip(ends, counts, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 120), window=st.integers(1, 40), group=st.integers(1, 6), start=st.integers(0, 12),
    kinds=st.integers(1, 3), seed=st.integers(0, 9),
)  # fmt: skip
def test_a_block_is_packed_whole(count, window, group, start, kinds, seed):
    rng = np.random.default_rng(seed)
    lengths, kind = rng.integers(0, 50, count + 5), rng.integers(0, kinds, count + 5)
    chosen = rng.permutation(count + 5)[:count]
    packer = Packer(lengths=lengths, capacity=64, window=window, group_size=group, seed=seed)
    samples, counts = packer.pack(chosen, 2, start, kind[chosen] if kinds > 1 else None)
    assert sorted(samples) == sorted(chosen)
    rows = np.split(samples, np.cumsum(counts)[:-1])
    assert all(lengths[row].sum() <= 64 for row in rows)
    if kinds > 1:
        assert all(len(set(kind[row])) == 1 for row in rows)


def test_rows_of_a_micro_batch_are_equally_full():
    lengths = np.random.default_rng(0).integers(20, 60, 4000)
    packer = Packer(lengths=lengths, capacity=100, window=1000, group_size=8)
    samples, counts = packer.pack(np.arange(4000), 0, 3)
    fills = np.asarray([lengths[row].sum() for row in np.split(samples, np.cumsum(counts)[:-1])])
    groups = [fills[at : at + 8] for at in range(5, len(fills) - 7, 8)]
    waste = 1 - sum(group.sum() for group in groups) / sum(8 * group.max() for group in groups)
    assert waste < 0.02
    assert len({int(group.max()) for group in groups[:10]}) > 3, "groups are shuffled"


def test_micro_batches_are_laid_out_as_planned_and_drops_are_kept():
    odd = [make_sample("long", "x" * 99), make_sample("mute", "  ")]
    samples, processor = Samples([*mixed(30), *odd]), make_processor(60)
    order = build_order(samples, processor, OrderSettings(seed=1, micro_batch_size=3, row="packed"))
    collate, data, seen, dropped = (
        Collator(pad_id=0, row="packed", capacity=60),
        TrainingData(samples, processor),
        [],
        [],
    )
    for at in range(0, order.num_rows(1), 3):
        entries = [data[index] for index in order.take(at, min(at + 3, order.num_rows(1)))]
        batch = collate(entries)
        assert batch.input_ids.shape[0] <= 3
        assert batch.input_ids.shape[1] <= 60
        seen += batch.ids
        dropped += [entry.id for entry in entries if isinstance(entry, Dropped)]
    assert sorted(seen) == sorted(str(n) for n in range(30))
    assert sorted(dropped) == ["long", "mute"]


def test_homogeneous_packing_keeps_parts_apart():
    data = Mixture([Part("a", mixed(25)), Part("b", mixed(14))], homogeneous=True)
    order = build_order(data, make_processor(), OrderSettings(seed=0, micro_batch_size=2, row="packed"))
    kinds = data.kinds()
    rows = [order.take(row, row + 1) for row in range(order.num_rows(2))]
    assert all(len(set(kinds[row].tolist())) == 1 for row in rows)
    assert max(map(len, rows)) > 1
    batches = [order.take(at, at + 2) for at in range(0, order.num_rows(1), 2)]
    assert sum(len(set(kinds[batch].tolist())) > 1 for batch in batches) <= 2


def test_lengths_are_those_of_training():
    samples = Samples([*mixed(7), make_sample("long", "x" * 99), make_sample("mute", "  ")])
    processor = make_processor()
    found, data = token_lengths(samples, processor), TrainingData(samples, processor)
    items = [data[index] for index in range(9)]
    assert found.tolist() == [len(item.input_ids) if isinstance(item, Item) else 0 for item in items]
    assert found.tolist() == token_lengths(samples, processor, num_workers=2).tolist()


def test_lengths_are_counted_once(tmp_path, caplog, monkeypatch):
    samples, processor = mixed(50), make_processor()
    caplog.set_level(logging.INFO, logger="mmexp")
    first = token_lengths(samples, processor, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert "counting the tokens of 50 rows" in caplog.text
    caplog.clear()
    assert token_lengths(samples, make_processor(), tmp_path).tolist() == first.tolist()
    assert not caplog.text
    other = replace(processor, template=ChatTemplate(name="t", user="say {turn}|"))
    assert token_lengths(samples, other, tmp_path).tolist() != first.tolist()
    assert len(list(tmp_path.iterdir())) == 2


def test_kept_lengths_that_do_not_fit_are_counted_again(tmp_path, caplog):
    samples, processor = mixed(20), make_processor()
    right = token_lengths(samples, processor, tmp_path).tolist()
    file = next(iter(tmp_path.iterdir()))
    np.save(file, np.asarray(right) + 1)
    assert token_lengths(samples, processor, tmp_path).tolist() == right
    assert "does not fit the data any more" in caplog.text
    file.write_bytes(b"junk")
    assert token_lengths(samples, processor, tmp_path).tolist() == right
    assert "is damaged" in caplog.text
    assert np.load(file).tolist() == right


def test_processor_fingerprint_sees_what_changes_lengths():
    base = make_processor()
    assert processor_fingerprint(base) == processor_fingerprint(make_processor())
    others = [
        replace(base, max_length_tokens=61),
        replace(base, slot_lengths={"image": 5}),
        replace(base, box_frame="picture"),
        replace(base, template=ChatTemplate(name="t", user="{turn}||")),
    ]
    assert len({processor_fingerprint(each) for each in [base, *others]}) == 5


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_row_is_named_while_counting(num_workers):
    bad = replace(make_sample("bad"), turns=make_sample("bad").turns[:1])
    data = Mixture([Part("good", mixed(3)), Part("odd", Samples([bad]))])
    with pytest.raises(DataError) as error:
        token_lengths(data, make_processor(), num_workers=num_workers)
    assert error.value.where == "data.parts.odd: demo, sample 'bad'"
    assert "without an answer" in error.value.found
