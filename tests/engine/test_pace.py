"""How fast a run is: every figure that is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from mmexp.engine import StageJob, fit
from mmexp.engine.pace import Speed

Make = Callable[..., StageJob]


def records(job: StageJob) -> list[dict[str, float]]:
    fit(job, lambda table: None)
    return [json.loads(line) for line in (job.run.path / "metrics.jsonl").read_text().splitlines()]


def test_what_a_record_says_of_speed(make_job: Make) -> None:
    speed = Speed(flops_per_token=1e6, peak_flops=1e12)
    found = records(make_job("pace", speed=speed))
    assert len(found) > 1
    for record in found:
        assert 0 < record["time/data_wait"] < 1
        assert 0 < record["data/media_per_s"] < 2 * record["data/samples_per_s"]
        assert record["memory/peak_gb"] > 0.05
        assert record["time/mfu"] == pytest.approx(record["data/tokens_per_s"] * 1e6 / 1e12, rel=1e-3)


def test_no_share_of_a_peak_that_nobody_knows(make_job: Make) -> None:
    assert not any("time/mfu" in record for record in records(make_job("unknown")))


def test_several_devices_reach_more() -> None:
    speed = Speed(flops_per_token=4e10, peak_flops=1e15)
    assert speed.mfu(10_000, 1) == pytest.approx(0.4)
    assert speed.mfu(10_000, 8) == pytest.approx(0.05)
