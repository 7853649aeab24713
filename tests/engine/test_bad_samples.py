"""A run over data with a damaged picture: left out in place, listed once, the same after a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmexp.data import LlavaJsonConfig
from mmexp.engine import StageJob, fit
from mmexp.engine.bad_samples import BadSamples, read_bad_samples
from mmexp.errors import DataError

Make = Callable[..., StageJob]


@pytest.fixture
def damaged(rows: Path, tmp_path: Path) -> Path:
    """The rows of the stage; one picture is cut behind its header, one is missing."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in rows.parent.iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[:50] if file.name == "5.png" else data)
    (folder / "11.png").unlink()
    return folder / rows.name


def test_bad_samples_are_left_out_and_listed_once(make_job: Make, damaged: Path) -> None:
    job = make_job("bad", max_steps=12, data=LlavaJsonConfig(path=str(damaged)), bad_media_cap=0.2, num_workers=2)
    fit(job, lambda table: None)  # 48 samples: every row twice and more
    found = {entry["id"]: entry for entry in read_bad_samples(job.run.path)}
    assert set(found) == {"r5", "r11"}
    assert len((job.run.path / "bad_samples.jsonl").read_text().splitlines()) == 2
    assert found["r5"]["file"] == str(damaged.parent / "5.png")
    assert "damaged" in found["r5"]["reason"]
    assert "No such file" in found["r11"]["reason"]
    assert found["r5"]["dataset"] == damaged.stem
    lines = (job.run.path / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(line).get("data/dropped/bad_media", 0) for line in lines[-1:]) >= 4


def test_answers_that_the_template_shortens_are_counted_and_told(make_job: Make, caplog) -> None:
    job = make_job("short", max_steps=4)
    job = replace(job, plan=replace(job.plan, template=replace(job.plan.template, max_answer_tokens=2)))
    caplog.set_level("WARNING", logger="mmexp")
    fit(job, lambda table: None)
    lines = [json.loads(line) for line in (job.run.path / "metrics.jsonl").read_text().splitlines()]
    counts = [line["data/cut_answer_tokens"] for line in lines]
    assert 0 < counts[0] < counts[-1] == job.run.manifest()["num_cut_answer_tokens"]
    assert "data/dropped_turns" not in lines[-1]
    assert "lose part of an answer (template.max_answer_tokens)" in caplog.text


def test_above_the_cap_the_run_stops_before_it_trains_and_has_the_list(make_job: Make, damaged: Path) -> None:
    job = make_job("capped", data=LlavaJsonConfig(path=str(damaged)))
    with pytest.raises(DataError, match="1 of 21 samples") as error:
        fit(job, lambda table: None)
    assert "11.png" in str(error.value)
    assert [entry["id"] for entry in read_bad_samples(job.run.path)] == ["r11"]


def test_a_continued_run_does_not_list_twice_and_the_log_stays_short(tmp_path: Path, caplog) -> None:
    bad = [{"id": str(n), "dataset": "d", "file": f"{n}.png", "reason": "gone"} for n in range(30)]
    file = tmp_path / "bad_samples.jsonl"
    BadSamples(file).add(bad[:20])
    again = BadSamples(file)
    again.add(bad)
    again.add(bad)
    assert read_bad_samples(tmp_path) == bad
    assert len([record for record in caplog.records if "left out: sample" in record.message]) == 10
