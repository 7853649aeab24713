"""Runs from Weights & Biases, through an object with the interface of its public API: there is no network here."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmexp.compare import compare, csv_text, load_folders, load_tracked, markdown
from mmexp.errors import DataError
from tests.compare.runs import CONFIG, MLP2X, make_run


class FakeRun:
    """What was logged of a run directory, as `wandb.apis.public.Run` gives it back."""

    def __init__(self, folder: Path, state: str = "finished") -> None:
        self.folder, self.state = folder, state
        self.id, self.name = f"{folder.name}-0123abcd", "connector=linear"
        manifest = json.loads((folder / "manifest.json").read_text())
        self.config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
        self.config |= {"derived": manifest["derived"], "run_id": folder.name}
        results = json.loads((folder / "results.json").read_text())
        figures = {
            f"val/{split}/{name}/{metric}": value
            for split, group in results.items()
            for name, metrics in group.items()
            for metric, value in metrics.items()
        }
        self.summary_metrics = dict(sorted(figures.items())) | {"_runtime": 12, "_wandb": {"runtime": 12}}
        self.config["overrides"] = (folder / "overrides.txt").read_text().splitlines()
        self.metadata = {"program": "train", "args": []}

    def scan_history(self) -> Iterator[Mapping[str, Any]]:
        for at, line in enumerate((self.folder / "metrics.jsonl").read_text().splitlines()):
            row = json.loads(line)
            yield {"_step": at, "_timestamp": 1.7e9, "trainer/global_step": row.pop("step"), **row}


class FakeApi:
    def __init__(self, runs: list[FakeRun]) -> None:
        self._runs, self.asked = runs, ("", None)

    def runs(self, path: str, filters: Mapping[str, Any] | None = None) -> list[FakeRun]:
        self.asked = (path, filters)
        return self._runs


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = []
    for seed in (0, 1):
        for name, config, scores in (("linear", {}, [1, 0, 1, 0]), ("mlp2x", MLP2X, [1, 1, 1, 0])):
            base = tmp_path / "outputs" / "default" / "align" / f"{name}{seed}"
            config = dict(config) | {"paths": CONFIG["paths"] | {"outputs": str(tmp_path / "outputs")}}
            made.append(make_run(base, scores=scores, seed=seed, config=config, overrides=[f"connector={name}"]))
    return made


def test_the_table_is_the_same_from_both_sources(folders: list[Path]) -> None:
    api = FakeApi([FakeRun(folder) for folder in folders])
    here = compare(load_folders([str(folder) for folder in folders]))
    there = compare(load_tracked("lab/mmexp", "one", api))
    assert api.asked == ("lab/mmexp", {"group": "one"})
    assert csv_text(there) == csv_text(here)
    assert markdown(there) == markdown(here)
    assert there.tests == here.tests


def test_later_evaluations_count_for_the_run_that_they_are_of(folders: list[Path]) -> None:
    runs = [FakeRun(folder) for folder in folders]
    later = []
    for at, state in enumerate(("finished", "finished", "crashed")):
        run = FakeRun(folders[0], state)
        run.id, run.config = f"later{at}", {"evaluates": runs[0].id}
        run.summary_metrics = {"val/fresh/vqa/exact_match": 0.25 * (at + 1), "val/fresh/vqa/num_samples": 4}
        later.append(run)
    found = load_tracked("p", None, FakeApi([*runs, *later]))
    assert len(found.records) == len(runs)
    assert not found.left_out
    metrics = [record.metrics.get("fresh/vqa/exact_match") for record in found.records]
    assert metrics == [0.5, None, None, None]


def test_without_the_directories_samples_are_missing_and_said_to_be(folders: list[Path]) -> None:
    runs = [FakeRun(folder) for folder in folders]
    for run in runs:
        run.config = run.config | {"paths": run.config["paths"] | {"outputs": "/not/on/this/machine"}}
    here, there = (
        compare(load_folders([str(folder) for folder in folders])),
        compare(load_tracked("p", None, FakeApi(runs))),
    )
    assert csv_text(there) == csv_text(here)
    assert there.tests == {}
    assert "4 of 4 runs have no predictions here" in there.notes[0]


def test_unfinished_and_foreign_runs_are_left_out(folders: list[Path]) -> None:
    runs = [FakeRun(folder) for folder in folders]
    runs[1].state = "crashed"
    runs[2].config = {"lr": 1}
    found = load_tracked("p", None, FakeApi(runs))
    assert len(found.records) == 2
    assert [reason for _, reason in found.left_out] == [
        "not finished: crashed",
        "its configuration is not that of a run of mmexp",
    ]


def test_what_the_api_cannot_do_is_one_message(folders: list[Path]) -> None:
    class Refuses(FakeApi):
        def runs(self, path: str, filters: Mapping[str, Any] | None = None) -> list[FakeRun]:
            raise ValueError("Could not find project p\nmore")

    with pytest.raises(DataError, match=r"Could not find project p\n  expected") as caught:
        load_tracked("p", None, Refuses([]))
    assert "wandb login" in str(caught.value)
    with pytest.raises(DataError, match="no run can be compared"):
        load_tracked("p", None, FakeApi([]))


def test_the_real_api_has_this_interface() -> None:
    public = pytest.importorskip("wandb.apis.public")
    assert {"path", "filters"} <= set(inspect.signature(public.Api.runs).parameters)
    for name in ("id", "name", "state", "config", "summary_metrics", "metadata", "scan_history"):
        assert hasattr(public.Run, name), name
