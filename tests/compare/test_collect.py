"""Which runs are found, what is read of them, and how they are grouped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmexp.compare import compare, load_folders
from mmexp.compare.groups import factors
from mmexp.compare.record import record_of_folder
from mmexp.compare.settings import differing
from mmexp.errors import ConfigError, DataError
from mmexp.page import spent_before
from tests.compare.runs import CONFIG, MLP2X, make_run


def test_trees_globs_and_directories_find_the_same(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / "outputs" / "a" / "align" / f"r{seed}", seed=seed)
    (tmp_path / "outputs" / "cache" / "shapes").mkdir(parents=True)
    one = [record.folder for record in load_folders([str(tmp_path)]).records]
    assert len(one) == 2
    assert one == [record.folder for record in load_folders([f"{tmp_path}/outputs/a/*/r*"]).records]
    assert one == [record.folder for record in load_folders([str(folder) for folder in one] * 2).records]


def test_broken_and_unfinished_runs_are_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    make_run(tmp_path / "going", status="running", seed=1)
    make_run(tmp_path / "bare", seed=2)
    (tmp_path / "bare" / "manifest.json").unlink()
    make_run(tmp_path / "torn", seed=3)
    (tmp_path / "torn" / "manifest.json").write_text('{"status": "fin')
    make_run(tmp_path / "mute", seed=4)
    (tmp_path / "mute" / "config.yaml").write_text("a: [")
    make_run(tmp_path / "cut", seed=5)
    (tmp_path / "cut" / "results.json").write_text("[")
    found = load_folders([str(tmp_path)])
    assert [record.name.split("/")[-1] for record in found.records] == ["good"]
    reasons = {Path(name).name: reason for name, reason in found.left_out}
    assert reasons["going"] == "not finished: running"
    assert reasons["bare"] == "no manifest.json"
    assert reasons["torn"] == "manifest.json is damaged"
    assert reasons["mute"].startswith("config.yaml cannot be read")
    assert reasons["cut"] == "results.json is damaged"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere", "no such folder"),
        ("x*", "matches no folder"),
        ("empty", "holds no run"),
        ("going", "no run can be compared"),
    ],
)
def test_nothing_to_compare(tmp_path: Path, place: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "going", status="interrupted")
    with pytest.raises(DataError, match=words):
        load_folders([str(tmp_path / place)])


def _sweep(tmp_path: Path, relative: bool) -> Path:
    run = make_run(tmp_path / "outputs" / "default" / "align" / "r0")
    name = "outputs/default/align/r0" if relative else str(run)
    jobs = [
        {"number": 0, "overrides": ["seed=0"], "run": name, "status": "finished", "reason": None, "wall_s": 1.0},
        {"number": 1, "overrides": ["seed=1"], "run": None, "status": "failed", "reason": "no space", "wall_s": 1.0},
        {"number": 2, "overrides": ["seed=2"], "run": None, "status": "queued", "reason": None, "wall_s": None},
    ]
    folder = tmp_path / "outputs" / "sweeps" / "one"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"version": 1, "name": "one", "cwd": str(tmp_path), "jobs": jobs}))
    return folder


@pytest.mark.parametrize("relative", [True, False])
def test_a_sweep(tmp_path: Path, relative: bool) -> None:
    found = load_folders([str(_sweep(tmp_path, relative))])
    assert [record.name for record in found.records] == ["default/align/r0"]
    assert found.left_out == [("job 1 (seed=1)", "failed: no space"), ("job 2 (seed=2)", "queued")]


def test_a_moved_sweep_is_found_from_where_it_lies(tmp_path: Path) -> None:
    folder = _sweep(tmp_path, relative=True)
    content = json.loads((folder / "sweep.json").read_text())
    del content["cwd"]
    content["jobs"][0]["run"] = "default/align/r0"  # from the sweep's grand-parent
    (folder / "sweep.json").write_text(json.dumps(content))
    assert len(load_folders([str(folder)]).records) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"jobs": [{"number": 1}]}'])
def test_a_damaged_sweep(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(DataError, match="not the record of a sweep"):
        load_folders([str(tmp_path)])


def test_costs_come_from_the_log(tmp_path: Path) -> None:
    cost = record_of_folder(make_run(tmp_path / "r", step_s=0.5)).cost
    assert cost.train_s == pytest.approx(20)
    assert cost.tokens == pytest.approx(2000)
    assert cost.samples == pytest.approx(320)
    assert cost.images_per_s == pytest.approx(16)
    assert cost.peak_memory_gb == pytest.approx(0.9)
    assert cost.tokens_per_image == 36


def test_costs_count_the_stages_before(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", step_s=0.25)
    before = spent_before([first])
    assert before == pytest.approx({"train_s": 20, "tokens": 2000, "samples": 320})
    file = second / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"derived": {"before": before}}))
    cost = record_of_folder(second).cost
    assert cost.train_s == pytest.approx(30)
    assert cost.tokens == pytest.approx(3000)
    assert cost.images_per_s == pytest.approx(16), "of its own steps"
    assert spent_before([second]) == pytest.approx({"train_s": 30, "tokens": 3000, "samples": 480})
    assert spent_before([]) == {}


def test_runs_that_differ_in_the_seed_are_one_group(tmp_path: Path) -> None:
    for seed in (2, 1):
        make_run(tmp_path / f"a{seed}", seed=seed, overrides=["connector=linear", f"run_id=a{seed}"])
        make_run(tmp_path / f"b{seed}", seed=seed, config=MLP2X, overrides=["connector=mlp2x", "logger=none"])
    comparison = compare(load_folders([str(tmp_path)]))
    assert {group.label: [r.seed for r in group.records] for group in comparison.groups} == {
        "connector=linear": [1, 2],
        "connector=mlp2x": [1, 2],
    }
    assert comparison.differing == ["connector.depth"]


def test_names_and_places_are_no_settings(tmp_path: Path) -> None:
    moved = json.loads(json.dumps(CONFIG).replace("/cache/a", "/elsewhere")) | {
        "name": "other",
        "logger": {"wandb": {}},
    }
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1, config=moved)
    comparison = compare(load_folders([str(tmp_path)]))
    assert len(comparison.groups) == 1
    assert comparison.differing == []


def test_a_repeated_seed_is_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "a", scores=[0, 0])
    make_run(tmp_path / "b", scores=[1, 1])
    comparison = compare(load_folders([str(tmp_path)]))
    assert len(comparison.groups[0].records) == 1
    assert "same settings and seed" in comparison.left_out[0][1]


@pytest.mark.parametrize("relative", [True, False])
def test_stages_after_different_parents_are_different(tmp_path: Path, relative: bool) -> None:
    for at, parent in enumerate([{}, {}, MLP2X]):
        start = make_run(tmp_path / "outputs" / f"start{at}", seed=at, config=parent)
        place = f"outputs/start{at}" if relative else str(start)
        stage = CONFIG["stage"] | {"name": "instruct", "init_from": place}
        make_run(tmp_path / "ends" / f"end{at}", seed=at, config={"stage": stage})
    comparison = compare(load_folders([str(tmp_path / "ends")]))
    assert sorted(len(group.records) for group in comparison.groups) == [1, 2]
    assert comparison.differing == ["stage.init_from"]


def test_a_swapped_component_is_one_factor() -> None:
    pool = {"connector._target_": "mmexp.connector.PoolConfig", "connector.factor": 2, "stage.lr": 0.1}
    mlp = {"connector._target_": "mmexp.connector.MlpConfig", "connector.depth": 1, "stage.lr": 0.2}
    assert [(one.name, list(one.values)) for one in factors([pool, mlp])] == [
        ("connector", ["Pool factor=2", "Mlp depth=1"]),
        ("stage.lr", ["0.1", "0.2"]),
    ]
    assert differing([pool, pool]) == []


def test_metrics_and_baselines_that_do_not_exist(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    found = load_folders([str(tmp_path)])
    assert compare(found, metric="f1").main == "heldout/vqa/f1"
    with pytest.raises(ConfigError, match="heldout/vqa/exact_match"):
        compare(found, metric="accuracy")
    with pytest.raises(ConfigError, match="0 groups are called 'x'"):
        compare(found, baseline="x")


def test_a_run_without_benchmarks_is_ranked_by_its_loss(tmp_path: Path) -> None:
    for name, config in (("a", {}), ("b", MLP2X)):
        (make_run(tmp_path / name, config=config) / "results.json").unlink()
    rows = (tmp_path / "b" / "metrics.jsonl").read_text().replace('"train/loss": 0.1,', '"train/loss": 0.05,')
    (tmp_path / "b" / "metrics.jsonl").write_text(rows)
    comparison = compare(load_folders([str(tmp_path)]))
    assert comparison.main == "train/loss"
    assert comparison.groups[0].label == "connector.depth=2"


def test_what_was_typed_alike_is_told_apart_by_settings(tmp_path: Path) -> None:
    for at, lr in enumerate((0.1, 0.2)):
        stage = CONFIG["stage"] | {"lr": lr}
        make_run(tmp_path / f"a{at}", config={"stage": stage}, overrides=["recipe=llava15"])
    make_run(tmp_path / "b", config=MLP2X, overrides=["recipe=blip2"])
    labels = {group.label for group in compare(load_folders([str(tmp_path)])).groups}
    assert labels == {"recipe=llava15 stage.lr=0.1", "recipe=llava15 stage.lr=0.2", "recipe=blip2"}


def test_the_figure_that_most_groups_have_ranks(tmp_path: Path) -> None:
    for at in range(3):
        config = {"connector": {"_target_": "mmexp.connector.MlpConfig", "depth": at}}
        run = make_run(tmp_path / f"a{at}", config=config)
        if at == 0:
            (run / "results.json").write_text(json.dumps({"heldout": {"retrieval": {"recall_1": 0.5}}}))
    assert compare(load_folders([str(tmp_path)])).main == "heldout/vqa/exact_match"
