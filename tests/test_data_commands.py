"""`python -m mmexp.data` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TINY = ["encoder=tiny", "llm=tiny", "data=llava_json", "data.path=rows.json"]


def run(*args: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mmexp.data", *args],
        cwd=cwd, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for number in range(6):
        Image.new("RGB", (20 + number, 12), (40 * number, 9, 9)).save(tmp_path / f"{number}.png")
        said = [{"from": "human", "value": f"<image>\nwhat {number}"}, {"from": "gpt", "value": "a thing"}]
        rows.append({"id": f"r{number}", "image": f"{number}.png", "conversations": said})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def test_check_passes_flawless_data_and_names_what_is_broken(folder: Path) -> None:
    code, out, err = run("check", *TINY, cwd=folder)
    assert (code, "6 rows, 0 errors, 0 warnings" in out) == (0, True), out + err
    (folder / "4.png").write_bytes(b"not a picture")
    code, out, _ = run("check", *TINY, "out=found.html", cwd=folder)
    assert code == 1
    assert "r4: not a picture in a known format" in out
    assert "6 rows, 1 errors" in out
    assert "not a picture" in (folder / "found.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_stats_and_conversions(folder: Path) -> None:
    code, out, err = run("stats", *TINY, cwd=folder)
    assert code == 0, err
    assert "supervised tokens of a row" in out
    for to in ("llava", "webdataset"):
        code, out, err = run("convert", *TINY, f"to={to}", f"out=new_{to}", "shard_rows=4", cwd=folder)
        assert (code, "6 rows written" in out) == (0, True), out + err
    code, out, err = run("check", *TINY, "data.path=new_llava/data.json", cwd=folder)
    assert code == 0, out + err


@pytest.mark.slow
def test_cache_is_filled_ahead_and_found_again(folder: Path) -> None:
    own = [*TINY, "stage=align", "logger=none", "paths.cache=c"]
    for encoded, there in ((6, 0), (0, 6)):
        code, out, err = run("cache", *own, cwd=folder)
        assert code == 0, err
        facts = dict(line.strip("│ ").split("│") for line in out.splitlines() if line.startswith("│"))
        facts = {name.strip(): value.split()[0] for name, value in facts.items()}
        assert (facts["pictures"], facts["encoded"], facts["were there already"]) == ("6", str(encoded), str(there))
    assert len(list(folder.glob("c/features/*/*.safetensors"))) == 1
    code, out, err = run("cache", *own, "stage.policy.encoder=full", cwd=folder)
    assert (code, "processor.feature_cache=none" in err) == (2, True), out + err
    code, out, err = run("cache", *own, "paths.cache=d", "processor.feature_cache_gb=1e-9", cwd=folder)
    assert (code, "is full" in out) == (1, True), out + err


@pytest.mark.slow
def test_fetch_lists_what_a_recipe_needs(tmp_path: Path) -> None:
    code, out, err = run("fetch", "recipe=llava15", "download=false", cwd=tmp_path)
    assert code == 1, err
    assert err.count("scale=paper") == 1
    assert "llm: lmsys/vicuna-7b-v1.5, about 13.5 GB" in out
    assert "data.path (llava15_instruct)" in out
    assert run("fetch", cwd=tmp_path)[0] == 0, "the laptop twin needs nothing"
    out = run("fetch", "encoder=eva_g", "paths.models=models", "download=false", cwd=tmp_path)[1]
    assert "encoder: " in out
    assert "models/eva_vit_g.pth" in out.replace("\n", "")


@pytest.mark.slow
def test_fetch_lists_every_part_of_a_mixture(tmp_path: Path) -> None:
    code, out, err = run("fetch", *TINY[:2], "data=mixture", "scale=paper", "download=false", cwd=tmp_path)
    assert code == 1, err
    assert "data.parts.captions.data.path" in out
    assert "data.parts.conversations.data.path" in out
    (tmp_path / "m.json").write_text('{"a": {"annotation": "x.jsonl"}}')
    own = ["data=internvl_mixture", "data.path=m.json"]
    code, out, err = run("fetch", *TINY[:2], *own, "scale=paper", "download=false", cwd=tmp_path)
    assert (code, "data.path (instruct)" in out) == (0, True), out + err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "COMMAND"),
        (["chek"], "no command 'chek'"),
        (["convert", *TINY], "out"),
        (["convert", *TINY, "out=o", "to=parquet"], "llava or webdataset"),
        (["check", *TINY, "agaisnt=[x]"], "against"),
    ],
)
def test_mistakes_end_with_code_2(folder: Path, args: list[str], told: str) -> None:
    code, out, err = run(*args, cwd=folder)
    assert code == 2, out + err
    assert told in err
    assert "Traceback" not in err
