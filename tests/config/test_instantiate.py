"""The door: what it lets through, what it refuses before importing, and that it reports everything at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from mmexp.config import conf_dir, instantiate, registered_targets
from mmexp.errors import ConfigError

OURS = registered_targets([conf_dir()])

PARTS = """
from __future__ import annotations
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
if TYPE_CHECKING:
    from nowhere import Phantom

open("imported", "w").close()

@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int
    ratio: float = 0.5

@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    name: str
    layers: tuple[int, ...] = ()
    mode: Literal["fast", "exact"] = "fast"
    limit: int | None = None
    is_open: bool = False
    where: Path = Path(".")
    rates: Mapping[str, float] = field(default_factory=dict)
    phantom: Phantom | None = None
    anything: Any = None

    def __post_init__(self):
        if self.name == "bad":
            raise ValueError("bad is no name")

def make(size: int, *, label: str = "x"):
    return [size, label]

class Plain:
    def __init__(self, size: int, **others: Any):
        self.size, self.others = size, others

NUMBER = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> frozenset[str]:
    """Targets of a user's own package and folder, made for one test."""
    (tmp_path / "my_parts.py").write_text(PARTS)
    (tmp_path / "conf").mkdir()
    names = ("Inner", "Outer", "make", "Plain", "NUMBER", "absent")
    rows = [f"n{i}: {{_target_: my_parts.{name}}}" for i, name in enumerate(names)]
    (tmp_path / "conf" / "all.yaml").write_text("\n".join([*rows, "gone: [{deep: {_target_: my_gone.Thing}}]"]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield registered_targets([conf_dir(), tmp_path / "conf"])
    sys.modules.pop("my_parts", None)


def outer(**values: Any) -> dict[str, Any]:
    return {"_target_": "my_parts.Outer", "name": "n", "inner": {"_target_": "my_parts.Inner", "size": 1}, **values}


def mistakes(node: Any, registered: frozenset[str], where: str = "node") -> list[str]:
    with pytest.raises(ConfigError) as info:
        instantiate(node, where, registered)
    return [error.where for error in info.value.errors or [info.value]]


def test_nested_nodes_become_objects_of_plain_python(mine: frozenset[str]) -> None:
    node = OmegaConf.create(
        {"v": 2, "o": outer(layers=[1, 2], rates={"a": 1}, anything={"x": [1, {"y": 2}]}, inner={"size": "${v}"})}
    )
    built = instantiate(node.o, "node", mine)
    assert built.inner.size == 2
    assert built.layers == (1, 2)
    assert built.rates == {"a": 1.0}
    assert isinstance(built.rates["a"], float)
    assert built.anything == {"x": [1, {"y": 2}]}
    assert not any(isinstance(value, DictConfig | ListConfig) for value in (built.anything, built.anything["x"]))


def test_lists_and_mappings_of_nodes(mine: frozenset[str]) -> None:
    inner = {"_target_": "my_parts.Inner", "size": 1}
    built = instantiate({"a": inner, "b": [inner, 3], "c": None}, "node", mine)
    assert built["b"][0] == built["a"]
    assert built["b"][1] == 3
    assert built["c"] is None


def test_functions_and_plain_classes(mine: frozenset[str]) -> None:
    assert instantiate({"_target_": "my_parts.make", "size": 2}, "node", mine) == [2, "x"]
    assert instantiate({"_target_": "my_parts.Plain", "size": 2, "more": "y"}, "node", mine).others == {"more": "y"}
    assert mistakes({"_target_": "my_parts.make", "sise": 2}, mine) == ["node.sise", "node.size"]
    assert mistakes({"_target_": "my_parts.make", "size": "2"}, mine) == ["node.size"]


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"inner": {"size": "3"}}, "node.inner.size"),
        ({"inner": {"size": 1.5}}, "node.inner.size"),
        ({"inner": {"size": True}}, "node.inner.size"),
        ({"inner": {"size": 1, "ratio": "0.5"}}, "node.inner.ratio"),
        ({"inner": 3}, "node.inner"),
        ({"name": 3}, "node.name"),
        ({"name": None}, "node.name"),
        ({"layers": [1, "2"]}, "node.layers.1"),
        ({"layers": 1}, "node.layers"),
        ({"mode": "exat"}, "node.mode"),
        ({"limit": "x"}, "node.limit"),
        ({"is_open": 1}, "node.is_open"),
        ({"rates": {"a": "fast"}}, "node.rates.a"),
        ({"name": "bad"}, "node"),
        ({"_partial_": True}, "node._partial_"),
        ({"_recursive_": False}, "node._recursive_"),
    ],
)
def test_wrong_values_are_named(mine: frozenset[str], values: dict[str, Any], where: str) -> None:
    assert mistakes(outer(**values), mine) == [where]


@pytest.mark.parametrize(
    "values",
    [{"limit": None}, {"inner": {"size": 1, "ratio": 1}}, {"where": "some/file"}, {"mode": "exact"}, {"phantom": 5}],
)
def test_right_values_pass(mine: frozenset[str], values: dict[str, Any]) -> None:
    instantiate(outer(**values), "node", mine)


def test_messages_name_what_would_work(mine: frozenset[str]) -> None:
    with pytest.raises(ConfigError) as info:
        instantiate(outer(lmit=3, mode="exat"), "node", mine)
    text = str(info.value)
    assert "try: node.limit=..." in text
    assert "expected: fast or exact" in text
    assert "try: node.mode=exact" in text


def test_everything_at_once(mine: frozenset[str]) -> None:
    node = {"a": outer(inner={"sise": 1}, mode="x"), "b": [{"_target_": "my_parts.make"}]}
    found = mistakes(node, mine)
    assert found == ["node.a.inner.sise", "node.a.inner.size", "node.a.mode", "node.b[0].size"]


def test_missing_and_unresolvable_values() -> None:
    config = OmegaConf.create({"_target_": "mmexp.data.LlavaJsonConfig", "path": "???", "name": "${nowhere}"})
    assert mistakes(config, OURS, "data") == ["data.path", "data.name"]


@pytest.mark.parametrize("target", ["my_parts.absent", "my_parts.NUMBER", "my_gone.Thing"])
def test_targets_that_are_not_there(mine: frozenset[str], target: str) -> None:
    assert mistakes({"_target_": target}, mine) == ["node._target_"]


HOSTILE = [
    "os.system",
    "subprocess.run",
    "builtins.eval",
    "builtins.open",
    "eval",
    "torch.load",
    "torch.hub.load",
    "shutil.rmtree",
    "pathlib.Path.unlink",
    "mmexp.engine.chain.load_file",
    "mmexp.connector.torch.load",
    "mmexp.connector.mlp.torch.hub.load",
    "mmexp.connector.MlpConfig.__init__",
    "mmexp.connector.MlpConfig ",
    "mmexp.connector.mlp.MlpConfig",
    "mmexp.config.cli.subprocess.run",
    "hydra.utils.instantiate",
    "transformers.AutoModel.from_pretrained",
    "",
    None,
    3,
    ["os.system"],
    {"_target_": "os.system"},
]


@pytest.mark.parametrize("target", HOSTILE, ids=str)
@pytest.mark.parametrize("place", ["top", "field", "list", "deep"])
def test_hostile_targets_are_refused(target: Any, place: str) -> None:
    bad = {"_target_": target, "command": "touch marker"}
    node = {
        "top": bad,
        "field": {"_target_": "mmexp.data.LlavaJsonConfig", "path": "x", "prepare": bad},
        "list": [1, [bad]],
        "deep": {"_target_": "mmexp.evaluation.VqaConfig", "splits": {"a": {"b": {"c": bad}}}},
    }[place]
    assert all(where.endswith("._target_") for where in mistakes(node, OURS))


def test_nothing_is_imported_when_anything_is_refused(mine: frozenset[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        instantiate([outer(), {"_target_": "os.system"}], "node", mine)
    assert not (tmp_path / "imported").exists()
    instantiate(outer(), "node", mine)
    assert (tmp_path / "imported").exists()


def test_a_users_class_is_unknown_without_their_folder(mine: frozenset[str]) -> None:
    assert set(mistakes(outer(), OURS)) == {"node._target_", "node.inner._target_"}


def test_registered_targets_reads_every_style_and_reports_damage(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        'x: {_target_: a.B, y: [{_target_: "c.D"}]}\n# _target_: not.This\n_target_: e.F\n'
    )
    assert registered_targets([tmp_path]) == {"a.B", "c.D", "e.F"}
    (tmp_path / "b.yaml").write_text("x: [")
    with pytest.raises(ConfigError, match=r"b\.yaml"):
        registered_targets([tmp_path])
