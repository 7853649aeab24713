"""Mixtures: configured with nested nodes, drawn by share and subset, and every message says which part it is about."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmexp.config import check, compose, instantiate
from mmexp.data import LlavaJsonConfig, MixtureConfig, PartConfig, fingerprint
from mmexp.data.hints import word_hints
from mmexp.data.mixture import Mixture, Part
from mmexp.data.subset import choose
from mmexp.errors import ConfigError, DataError
from mmexp.present_data import mixture_rows
from tests.data.samples import Samples, make_sample, mixed

TARGETS = frozenset({"mmexp.data.MixtureConfig", "mmexp.data.LlavaJsonConfig"})


def node(**parts):
    return {"_target_": "mmexp.data.MixtureConfig", "parts": parts}


def reader(path="a.json", **settings):
    return {"_target_": "mmexp.data.LlavaJsonConfig", "path": path, **settings}


def write(folder, name, count, answer="yes"):
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]
    (folder / name).write_text(json.dumps([{"id": str(n), "conversations": talk} for n in range(count)]))
    return str(folder / name)


def test_nested_nodes_are_built():
    built = instantiate(
        node(a={"data": reader(), "weight": 2, "subset": "first:3"}, b={"data": reader("b")}), "data", TARGETS
    )
    assert isinstance(built, MixtureConfig)
    assert built.parts["a"] == PartConfig(data=LlavaJsonConfig(path="a.json"), weight=2, subset="first:3")
    assert built.parts["b"].weight == 1


@pytest.mark.parametrize(
    ("broken", "where", "message"),
    [
        (node(a={"data": reader(limits=3)}), "data.parts.a.data.limits", "no such setting"),
        (node(a={"data": reader(limit="3")}), "data.parts.a.data.limit", "'3' is text"),
        (node(a={"data": reader(), "weights": 1}), "data.parts.a.weights", "PartConfig has no such setting"),
        (node(a={"weight": 1}), "data.parts.a.data", "not given"),
        (node(a={"data": reader(), "weight": "much"}), "data.parts.a.weight", "'much' is text"),
        (node(a={"data": reader(), "weight": 0}), "data.parts.a.weight", "expected: a number above 0"),
        (node(a={"data": reader(), "subset": "half"}), "data.parts.a.subset", "first:N, end:N or random:N"),
        (node(a={"data": reader(), "subset": "first:120%"}), "data.parts.a.subset", "up to 100%"),
        (node(a={"data": reader(), "subset": "end:2.5"}), "data.parts.a.subset", "whole number of rows"),
        (node(a={"data": {"path": "x"}}), "data.parts.a.data", "a mapping"),
        (node(a=reader()), "data.parts.a", "the settings of PartConfig"),
        (node(a={"data": node(b={"data": reader()})}), "data.parts.a.data", "a mixture inside a mixture"),
        (node(**{"a/b": {"data": reader()}}), "data.parts", "the name 'a/b'"),
        (node(), "data.parts", "no part"),
        (node(a={"data": reader()}) | {"mixing": "sqr"}, "data.mixing", "data.mixing=sqrt"),
        (node(a={"data": reader()}) | {"temperature": 2.0}, "data.temperature", "no effect while mixing is natural"),
        (node(a={"data": reader()}) | {"epoch_samples": 5}, "data.epoch_samples", "no effect while mixing is natural"),
        (node(a={"data": {"_target_": "os.system"}}), "data.parts.a.data._target_", "not a registered component"),
    ],
)
def test_a_mistake_stands_at_its_config_path(broken, where, message):
    with pytest.raises(ConfigError) as error:
        instantiate(broken, "data", TARGETS)
    assert error.value.where == where, error.value
    assert message in str(error.value)


def test_mistakes_of_several_parts_come_together():
    with pytest.raises(ConfigError) as error:
        instantiate(node(a={"data": reader(limits=3)}, b={"data": reader(), "subset": "x"}), "data", TARGETS)
    assert [each.where for each in error.value.errors] == ["data.parts.a.data.limits", "data.parts.b.subset"]


def test_parts_are_added_on_the_command_line():
    line = ["data=mixture", "+data@data.parts.more.data=shapes", "data.parts.more.subset=first:10%", "scale=paper"]
    invocation = compose("train", [*line, "data.mixing=temperature", "data.temperature=3"])
    built = check(invocation.cfg, invocation.registered).parts["data"]
    assert list(built.parts) == ["captions", "conversations", "more"]
    assert built.parts["more"].subset == "first:10%"
    assert built.temperature == 3


def test_samples_carry_the_name_of_their_part(tmp_path):
    one, two = write(tmp_path, "a.json", 3), write(tmp_path, "b.json", 4, "no way")
    parts = {"one": PartConfig(data=LlavaJsonConfig(path=one)), "two": PartConfig(data=LlavaJsonConfig(path=two))}
    data = MixtureConfig(parts=parts).build()
    assert [(data[n].dataset, data[n].id) for n in range(7)] == [("one", str(n)) for n in range(3)] + [
        ("two", str(n)) for n in range(4)
    ]
    assert data[-1] == data[6]
    with pytest.raises(IndexError):
        data[7]
    assert data.kinds().tolist() == [0] * 3 + [1] * 4
    assert data.hints().tolist() == [-2] * 3 + [-3] * 4


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (None, range(10)),
        ("first:3", range(3)),
        ("end:3", range(7, 10)),
        ("first:25%", range(2)),
        ("end:100%", range(10)),
    ],
)
def test_subsets(rule, expected):
    chosen = choose(mixed(10), rule, "p")
    assert [chosen[n].id for n in range(len(chosen))] == [str(n) for n in expected]
    assert word_hints(chosen).tolist() == [word_hints(mixed(10))[n] for n in expected]


def test_random_subsets_are_the_same_in_every_run_and_differ_between_parts():
    found = [choose(mixed(100), "random:20%", name).indices.tolist() for name in ("a", "a", "b")]
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) == 20
    assert found[0] == sorted(found[0])


def test_a_subset_of_more_rows_than_there_are_is_refused_by_part(tmp_path):
    part = PartConfig(data=LlavaJsonConfig(path=write(tmp_path, "a.json", 3)), subset="first:4")
    with pytest.raises(DataError) as error:
        MixtureConfig(parts={"small": part}).build()
    assert str(error.value).startswith("data.parts.small: subset: first:4 would be 4 of 3 rows")


def test_a_subset_of_shards_knows_its_shards():
    class Sharded(Samples):
        shard_sizes = (4, 3, 5)

    assert choose(Sharded(mixed(12)), "end:7", "p").shard_sizes == (2, 5)
    assert not hasattr(choose(mixed(12), "end:7", "p"), "shard_sizes")


def test_errors_name_the_part(tmp_path):
    class Broken(Samples):
        def __getitem__(self, index):
            raise DataError("a hole", where="file.json: row 3")

    data = Mixture([Part("good", mixed(2)), Part("bad", Broken(mixed(2)))])
    with pytest.raises(DataError) as error:
        data[3]
    assert str(error.value) == "data.parts.bad: file.json: row 3: a hole"
    with pytest.raises(DataError, match=r"data\.parts\.lost: .*does not exist"):
        MixtureConfig(parts={"lost": PartConfig(data=LlavaJsonConfig(path=str(tmp_path / "no.json")))}).build()


def test_doctor_lists_parts_with_rows_and_shares_and_renders_nothing(tmp_path):
    class Never:
        def prepare(self):
            raise AssertionError("rendered")

    def part(name, count, **changes):
        file = write(tmp_path, f"{name}.json", count) if count else str(tmp_path / f"{name}.json")
        return PartConfig(data=LlavaJsonConfig(path=file, prepare=Never()), **changes)

    config = MixtureConfig(parts={"a": part("a", 4), "b": part("b", 16, subset="first:9")}, mixing="sqrt")
    rows, errors = mixture_rows(config)
    assert not errors
    assert [(row["part"], row["rows"], row["share"], row["of an epoch"]) for row in rows] == [
        ("a", "4", "40.0%", "5"),
        ("b", "9", "60.0%", "8"),
    ]
    assert rows[1]["subset"] == "first:9"
    rows, errors = mixture_rows(MixtureConfig(parts={"a": part("a", 4), "gone": part("gone", 0)}))
    assert [(row["rows"], row["share"]) for row in rows] == [("4", "?"), ("not read", "?")]
    assert errors[0].where.startswith("data.parts.gone")


def test_fingerprint_and_identity_see_what_matters():
    def make(**changes):
        parts = [Part("a", mixed(5), changes.pop("weight", 1.0)), Part(changes.pop("name", "b"), mixed(6))]
        return Mixture(parts, **changes)

    assert fingerprint(make()) == fingerprint(make(weight=2.0))
    assert fingerprint(make()) != fingerprint(make(name="c"))
    base = make().identity()
    assert base == make().identity()
    for change, key in [
        ({"weight": 2.0}, "data.parts"),
        ({"mixing": "weights"}, "data.mixing"),
        ({"homogeneous": True}, "data.homogeneous"),
        ({"mixing": "weights", "epoch_samples": 7}, "data.mixing"),
    ]:
        assert make(**change).identity()[key] != base[key]


def test_hints_of_parts_without_hints_are_counted():
    data = Mixture([Part("a", mixed(3)), Part("b", Samples([make_sample("x", "one two three")]))])
    assert data.hints().dtype == np.int32
    assert data.hints().tolist() == [-2, 2, 2, -4]


@pytest.mark.parametrize("settings", [{}, {"mixing": "weights", "epoch_samples": 10}])
def test_a_small_share_is_never_rounded_to_nothing(tmp_path, caplog, settings):
    one, two = write(tmp_path, "a.json", 3), write(tmp_path, "b.json", 4)
    parts = {
        "big": PartConfig(data=LlavaJsonConfig(path=one)),
        "tiny": PartConfig(data=LlavaJsonConfig(path=two), weight=1e-8),
    }
    caplog.set_level("WARNING", logger="mmexp")
    quotas = MixtureConfig(parts=parts, **settings).build().quotas()
    assert 0 < quotas[1] < 1e-6
    assert "data.parts.tiny gives" in caplog.text
    assert "data.parts.big" not in caplog.text
