"""Swept overrides become the overrides of jobs."""

from __future__ import annotations

import pytest

from mmexp.errors import ConfigError
from mmexp.sweep import grid
from mmexp.sweep.grid import alternatives, fixed, for_the_search, own_overrides, value_of


def expand(overrides: list[str]) -> list[list[str]]:
    return grid.expand(overrides, {"connector": ["linear", "mlp2x", "mlp3x"]})


def test_a_pattern_takes_the_choices_that_fit() -> None:
    assert expand(["connector=glob(mlp*)"]) == [["connector=mlp2x"], ["connector=mlp3x"]]


def test_every_combination_in_the_order_of_the_keys() -> None:
    jobs = expand(["connector=linear,mlp2x", "llm=tiny", "seed=range(1,3)", "sweep.n_jobs=2", "hydra/launcher=basic"])
    assert jobs == [
        [f"connector={connector}", "llm=tiny", f"seed={seed}"] for connector in ("linear", "mlp2x") for seed in (1, 2)
    ]


def test_a_key_given_again_takes_the_place_of_the_earlier_one() -> None:
    assert expand(["seed=1,2,3", "stage.lr=1e-3,1e-2", "++seed=4", "stage.lr=1"]) == [["++seed=4", "stage.lr=1"]]


def test_lists_and_quoted_values_stay_one_value() -> None:
    jobs = expand(["trainer.compile=[llm,encoder]", "data.path='a b,c'", "evaluation=[a,b],none"])
    assert jobs == [
        ["trainer.compile=[llm,encoder]", "data.path='a b,c'", "evaluation=[a,b]"],
        ["trainer.compile=[llm,encoder]", "data.path='a b,c'", "evaluation=none"],
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.lr=interval(0,1)", "hydra/sweeper=optuna"),
        ("connector=glob(q*)", "fits no choice"),
        ("run_id=a,b", "names its runs itself"),
        ("resume=outputs/x", "sweep.resume"),
        ("stage.lr={", "cannot be read"),
    ],
)
def test_what_no_grid_can_hold(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        expand([override])


def test_parts_of_a_command_line() -> None:
    line = ["experiments=a,b", "seed=1,2", "llm=tiny", "sweep.n_jobs=2", "hydra.sweeper.n_trials=3"]
    assert alternatives(line, "experiments") == ["a", "b"]
    assert alternatives(line, "llm") == [None]
    assert fixed(line) == line[2:]
    assert own_overrides(line) == line[3:]
    assert for_the_search([*line, "hydra/launcher=x", "++llm=none"]) == [*line[:2], "++llm=none", line[4]]
    assert value_of(["experiments=[a,b]"], "experiments") == "a+b"
    assert value_of(["experiments=null"], "experiments") is None
    assert value_of(line, "experiments") is None
