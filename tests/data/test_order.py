"""The order of a run: nothing lost or doubled, the same from any place, local for shards, exact for LLaVA's groups."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmexp.data import OrderSettings, RunOrder, RunSampler, build_order
from mmexp.data.grouping import Grouping, deal
from mmexp.data.mixture import Mixture, Part
from mmexp.data.order import Mixed, Shuffled, Windowed, draws_of, stretch
from mmexp.data.packing import Packer
from mmexp.data.shuffle import permutation
from mmexp.errors import ConfigError
from tests.data.samples import Samples, make_processor, mixed

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


class Rows:
    """A data set of which only the size is asked."""

    def __init__(self, count: int, shard_sizes=None) -> None:
        self.count, self.fingerprint = count, f"{count} rows"
        if shard_sizes:
            self.shard_sizes = tuple(shard_sizes)

    def __len__(self) -> int:
        return self.count


def mixture(sizes, **settings_) -> Mixture:
    weights = settings_.pop("weights", [1.0] * len(sizes))
    pairs = enumerate(zip(sizes, weights, strict=True))
    return Mixture([Part(f"p{n}", Rows(size), weight) for n, (size, weight) in pairs], **settings_)


def test_plain_shuffle_is_the_one_of_earlier_versions():
    """Frozen: a run that was started before must find its samples again."""
    order = RunOrder(Shuffled(7, 3))
    assert order.take(0, 16) == [6, 2, 0, 3, 4, 1, 5, 6, 3, 1, 4, 2, 0, 5, 3, 0]


def test_permutations_are_frozen():
    """They come from our own arithmetic, so no library can change them."""
    assert permutation(8, "a", 1).tolist() == [1, 0, 6, 7, 3, 5, 4, 2]
    assert sorted(permutation(1000, "b")) == list(range(1000))


def orders(sizes, kind, seed):
    """One order of each sort over data sets of these sizes."""
    total, kinds = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    lengths = np.asarray([1 + index * 7 % 23 for index in range(total)])
    packer = Packer(lengths=lengths, capacity=40, window=9, seed=seed, group_size=2)
    group = Grouping(size=6, num_chunks=3, seed=seed)
    made = {
        "shuffled": lambda: RunOrder(Shuffled(total, seed)),
        "shards": lambda: RunOrder(Windowed(sizes, 4, seed)),
        "natural": lambda: RunOrder(draws_of(mixture(sizes), seed)),
        "packed": lambda: RunOrder(Shuffled(total, seed), packer=packer),
        "packed by part": lambda: RunOrder(draws_of(mixture(sizes), seed), packer=packer, grouping=group, kinds=kinds),
        "by part": lambda: RunOrder(draws_of(mixture(sizes), seed), grouping=group, kinds=kinds),
        "by length": lambda: RunOrder(Shuffled(total, seed), grouping=group, lengths=lengths),
        "by both": lambda: RunOrder(Shuffled(total, seed), grouping=group, lengths=lengths, kinds=kinds % 2),
    }
    return made[kind]()


KINDS = ["shuffled", "shards", "natural", "packed", "packed by part", "by part", "by length", "by both"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 5), world=st.integers(1, 4), seed=st.integers(0, 5), data=st.data())
def test_every_epoch_is_exact_over_ranks_and_from_any_place(kind, sizes, batch, world, seed, data):
    whole, epochs = orders(sizes, kind, seed), 3
    count = -(-whole.num_rows(epochs) // (batch * world))
    ranks = [
        RunSampler(order=orders(sizes, kind, seed), batch_size=batch, num_micro_batches=count, rank=r, world_size=world)
        for r in range(world)
    ]
    batches = [list(rank) for rank in ranks]
    stream = [index for step in zip(*batches, strict=True) for each in step for index in each]
    total = sum(sizes)
    for epoch in range(epochs):
        assert sorted(stream[epoch * total : (epoch + 1) * total]) == list(range(total))
    place, rank = data.draw(st.integers(0, count)), data.draw(st.integers(0, world - 1))
    again = RunSampler(
        order=orders(sizes, kind, seed), batch_size=batch, num_micro_batches=count, position=place, rank=rank,
        world_size=world,
    )  # fmt: skip
    assert list(again) == batches[rank][place:]


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), window=st.integers(1, 30), epoch=st.integers(0, 3))
def test_shards_stay_together(sizes, window, epoch):
    order = Windowed(sizes, window, 1).block(epoch)
    assert sorted(order) == list(range(sum(sizes)))
    shard = np.repeat(np.arange(len(sizes)), sizes)[order]
    first = {int(name): int(np.flatnonzero(shard == name)[0]) for name in np.unique(shard)}
    for name, size in enumerate(sizes):
        places = np.flatnonzero(shard == name)
        assert places[-1] - first[name] < size + 2 * window, "a shard is read in one stretch"
    if window == 1:
        assert all(np.diff(order[shard == name]).tolist() == [1] * (size - 1) for name, size in enumerate(sizes))


def test_shards_are_shuffled_and_epochs_differ():
    draws = Windowed([50] * 20, 100, 0)
    one, two = draws.block(0), draws.block(1)
    assert one.tolist() != two.tolist()
    moved = np.argsort(one) - np.argsort(Windowed([50] * 20, 1, 0).block(0))
    assert 50 < np.abs(moved).max() < 100
    assert len({int(index) // 50 for index in one[:100]}) >= 3
    assert isinstance(draws_of(Rows(10, [4, 6]), 0), Windowed)


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 5), unit=st.integers(1, 4), data=st.data())
def test_quotas_are_kept_and_each_part_goes_through_its_rows(sizes, seed, unit, data):
    fractions = st.fractions(min_value=Fraction(1, 7), max_value=9, max_denominator=7)
    quotas = [data.draw(fractions) for _ in sizes]
    offsets = [sum(sizes[:number]) for number in range(len(sizes))]
    draws = Mixed([Shuffled(size, seed + n) for n, size in enumerate(sizes)], offsets, quotas, unit, seed)
    stream = [index for block in range(6) for index in draws.block(block).tolist()]
    assert len(stream) == draws.start(6)
    for number, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        mine = [index - offset for index in stream if offset <= index < offset + size]
        assert len(mine) == unit * int(6 * quotas[number])
        assert mine == stretch(draws.parts[number], 0, len(mine)).tolist(), "its own endless stream, in order"


@pytest.mark.parametrize(
    ("settings_", "shares"),
    [
        ({"mixing": "natural"}, [0.8, 0.2]),
        ({"mixing": "natural", "weights": [1, 2]}, [2 / 3, 1 / 3]),
        ({"mixing": "weights"}, [0.5, 0.5]),
        ({"mixing": "weights", "weights": [3, 1]}, [0.75, 0.25]),
        ({"mixing": "sqrt", "temperature": 2.0}, [2 / 3, 1 / 3]),
        ({"mixing": "temperature", "temperature": 1.0}, [0.8, 0.2]),
        ({"mixing": "temperature", "temperature": 1000.0}, [0.5, 0.5]),
    ],
)
def test_shares(settings_, shares):
    data = mixture([800, 200], **settings_)
    order = RunOrder(draws_of(data, 0))
    found = np.bincount(data.kinds()[order.take(0, order.num_rows(1))], minlength=2)
    assert found / found.sum() == pytest.approx(shares, abs=0.002)


def test_an_epoch_of_a_weighted_mixture_has_the_size_asked_for():
    order = RunOrder(draws_of(mixture([800, 200], mixing="weights", epoch_samples=100), 0))
    assert [order.num_rows(epochs) for epochs in (1, 2, 0.5)] == [100, 200, 50]
    assert RunOrder(draws_of(mixture([800, 200]), 0)).num_rows(1.5) == 1500


@pytest.mark.parametrize("mixing", ["natural", "weights"])
def test_homogeneous_micro_batches_over_all_ranks(mixing):
    data = mixture([37, 23, 9], mixing=mixing, homogeneous=True, weights=[1, 2, 1])
    settings_ = OrderSettings(seed=0, micro_batch_size=2, world_size=2)
    order = build_order(data, make_processor(), settings_)
    count = order.num_rows(4) // 4
    ranks = [RunSampler(order=order, batch_size=2, num_micro_batches=count, rank=r, world_size=2) for r in range(2)]
    kinds = data.kinds()
    mixed_up = [
        len({int(kinds[index]) for batch in step for index in batch}) > 1
        for step in zip(*map(list, ranks), strict=True)
    ]
    assert sum(mixed_up) <= (4 * 3 if mixing == "natural" else 0), "only what is left of the parts shares a micro-batch"
    assert len(mixed_up) > 50


def published_groups(indices, lengths, batch, chunks):
    """Section 3.4 of the facts, for rows of one modality whose number divides: sort, then always the shortest chunk."""
    found = []
    for start in range(0, len(indices), batch * chunks):
        mega = sorted(indices[start : start + batch * chunks], key=lambda index: -lengths[index])
        parts, totals = [[] for _ in range(chunks)], [0] * chunks
        for index in mega:
            at = min((c for c in range(chunks) if len(parts[c]) < batch), key=lambda c: totals[c])
            parts[at].append(index)
            totals[at] += lengths[index]
        found += [index for part in parts for index in part]
    return found


def test_length_groups_are_llavas():
    lengths = random.Random(0).choices(range(1, 400), k=96)
    order = RunOrder(Shuffled(96, 1), grouping=Grouping(size=24, num_chunks=6), lengths=np.asarray(lengths))
    assert order.take(0, 96) == published_groups(Shuffled(96, 1).block(0).tolist(), lengths, 4, 6)


def test_modalities_share_only_the_last_group():
    hints = np.asarray([5 + index % 40 if index % 3 else -(7 + index % 11) for index in range(200)])

    class Hinted(Rows):
        def hints(self):
            return hints

    chosen = OrderSettings(seed=4, micro_batch_size=4, accumulate=2, world_size=2, order="modality_length")
    order = build_order(Hinted(200), make_processor(), chosen)
    assert order.identity == {"processor.order": "modality_length", "stage.batch_size": 16}
    for epoch in range(3):
        stream = order.take(200 * epoch, 200 * (epoch + 1))
        assert sorted(stream) == list(range(200))
        lead = -200 * epoch % 16
        groups = [stream[at : at + 16] for at in range(lead, 200, 16)]
        is_mixed = [len({bool(hints[index] > 0) for index in group}) > 1 for group in groups]
        assert sum(is_mixed) <= 2
        assert not any(is_mixed[:-2])
        first = [hints[group[:4]].tolist() for group in groups[:-2]]
        assert all(
            max(np.abs(part)) >= max(np.abs(hints[group[4:8]])) for part, group in zip(first, groups, strict=False)
        )


def test_words_are_counted_where_a_dataset_has_no_hints():
    order = build_order(mixed(12), make_processor(), OrderSettings(seed=0, micro_batch_size=2, order="length"))
    assert order.lengths.tolist() == [2, 130, 130] * 4


def test_dealing_a_rest_goes_round():
    assert deal(np.arange(5), np.asarray([1, 5, 3, 2, 4]), 2).tolist() == [1, 2, 0, 4, 3]


def test_orders_that_do_not_go_together():
    with pytest.raises(ConfigError, match=r"length while processor\.row is packed"):
        OrderSettings(seed=0, micro_batch_size=1, order="length", row="packed")
    with pytest.raises(ConfigError) as error:
        OrderSettings(seed=0, micro_batch_size=1, packing_window=0)
    assert error.value.where == "processor.packing_window"


def test_shards_in_a_mixture_keep_their_order():
    data = Mixture([Part("tars", Rows(60, [20, 20, 20])), Part("rows", Rows(40))])
    order = build_order(data, make_processor(), OrderSettings(seed=0, micro_batch_size=1, shuffle_window=1))
    tars = [index for index in order.take(0, 100) if index < 60]
    assert sum(after - before != 1 for before, after in pairwise(tars)) <= 2
    assert order.identity["processor.shuffle_window"] == 1


def test_counts_of_a_packed_epoch():
    samples = Samples(mixed(40))
    order = build_order(samples, make_processor(), OrderSettings(seed=0, micro_batch_size=2, row="packed"))
    rows = [order.take(row, row + 1) for row in range(order.num_rows(1))]
    assert Counter(index for row in rows for index in row) == Counter(range(40))
    assert max(len(row) for row in rows) > 1
    assert order.num_rows(2) > order.num_rows(1.5) > order.num_rows(1)


def test_groups_by_length_of_a_homogeneous_mixture_stay_in_one_part():
    class Hinted(Rows):
        def hints(self):
            return np.arange(self.count) % 40 + 1

    data = Mixture([Part(f"p{n}", Hinted(n)) for n in (37, 23, 9)], mixing="weights", homogeneous=True)
    chosen = OrderSettings(seed=0, micro_batch_size=2, world_size=2, accumulate=3, order="length")
    stream = data.kinds()[build_order(data, make_processor(), chosen).take(0, 600)]
    assert all(len(set(stream[at : at + 12].tolist())) == 1 for at in range(0, 600, 12))


def test_short_rounds_do_not_make_a_long_block_again():
    draws = Windowed([50] * 20, 100, 0)
    assert draws.block(1) is draws.block(1)
    assert draws.block(0).tolist() == Windowed([50] * 20, 100, 0).block(0).tolist() != draws.block(1).tolist()
