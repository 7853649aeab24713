"""Statistics against hand values, closed forms and tables with known answers."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from mmexp.compare.importance import importances
from mmexp.compare.stats import bootstrap, holm, mean_interval, pareto_front, t_quantile


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423), (120, 1.9799)],
)
def test_t_of_the_printed_tables(freedom: int, t: float) -> None:
    assert t_quantile(freedom) == pytest.approx(t, abs=6e-5)


def test_t_of_another_level() -> None:
    assert t_quantile(5, 0.99) == pytest.approx(4.0321, abs=6e-5)


def test_interval_by_hand() -> None:
    found = mean_interval([0.8, 0.9, 1.0])  # deviation 0.1, 4.3027 * 0.1 / sqrt(3)
    assert (found.mean, found.n) == (pytest.approx(0.9), 3)
    assert found.half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert mean_interval([0.7]).half is None


def test_bootstrap_is_near_the_normal_case() -> None:
    differences = np.random.default_rng(3).normal(0.05, 0.5, (400, 1))
    found = bootstrap(differences)[0]
    mean, spread = differences.mean(), differences.std() / math.sqrt(400)
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.96 * spread, abs=0.1 * spread)
    assert found.high == pytest.approx(mean + 1.96 * spread, abs=0.1 * spread)
    assert found.p == pytest.approx(2 * (1 - NormalDist().cdf(abs(mean) / spread)), abs=0.02)
    assert found.num_samples == 400


def test_bootstrap_of_a_binomial() -> None:
    """Three wins and one loss: a resample's sum is at most 0 with the chance of at most two wins in four."""
    found = bootstrap(np.array([[1.0], [1.0], [1.0], [-1.0]]))[0]
    chance = sum(math.comb(4, wins) * 0.75**wins * 0.25 ** (4 - wins) for wins in (0, 1, 2))
    assert found.p == pytest.approx(2 * chance, abs=0.02)


def test_bootstrap_of_all_and_nothing() -> None:
    none, all_of_it = bootstrap(np.array([[0.0, 1.0]] * 50))
    assert (none.mean, none.low, none.high, none.p) == (0, 0, 0, 1)
    assert (all_of_it.low, all_of_it.high) == (1, 1)
    assert all_of_it.p == pytest.approx(2 / 10_001)


def test_pairs_are_tested_on_the_same_draws() -> None:
    one = np.random.default_rng(0).normal(size=(30, 1))
    alone, beside = bootstrap(one)[0], bootstrap(np.concatenate([one, -one], axis=1))
    assert (alone.low, alone.high, alone.p) == pytest.approx((beside[0].low, beside[0].high, beside[0].p))
    assert (beside[0].low, beside[0].high) == pytest.approx((-beside[1].high, -beside[1].low))


def test_bootstrap_of_many_samples_is_drawn_in_pieces() -> None:
    (found,) = bootstrap(np.tile([1.0, 0.0], 3000)[:, None])
    assert (found.low, found.high) == pytest.approx(
        (0.5 - 1.96 * 0.5 / 6000**0.5, 0.5 + 1.96 * 0.5 / 6000**0.5), abs=1e-3
    )


def test_holm_by_hand() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})
    assert holm({"a": 0.9, "b": 0.6}) == {"b": 1.0, "a": 1.0}


def test_pareto_front() -> None:
    points = {
        "cheap": (1, 0.5),
        "good": (3, 0.9),
        "twin": (3, 0.9),
        "worse": (3, 0.8),
        "dear": (4, 0.9),
        "mid": (2, 0.6),
    }
    assert pareto_front(points) == {"cheap", "mid", "good", "twin"}


def test_importance_of_an_additive_table() -> None:
    """y = 3a + b over a full grid, a and b in {0, 1}: 9 tenths of the variance go with a, 1 tenth with b."""
    grid = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in "xyz"]
    found = importances(
        [3.0 * a + b for a, b, _ in grid],
        {"b": [str(b) for _, b, _ in grid], "a": [str(a) for a, _, _ in grid], "c": [c for _, _, c in grid]},
    )
    assert [one.name for one in found] == ["a", "b", "c"]
    assert [one.share for one in found] == pytest.approx([0.9, 0.1, 0.0])
    assert found[0].share > found[0].by_chance
    assert found[1].share < found[1].by_chance


def test_importance_puts_many_numbers_into_parts() -> None:
    numbers = [str(0.001 * (at + 1)) for at in range(16)]
    random = np.random.default_rng(1).normal(size=16)
    found = importances(list(random), {"lr": numbers})
    assert found[0].share < 1
    assert importances([1.0, 1.0, 1.0, 1.0], {"lr": numbers[:4]}) == []
