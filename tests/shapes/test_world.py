"""The rendered world: ordinary files, complete or not there."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoTokenizer

import mmexp.shapes
from mmexp.contracts import Preparable, Region
from mmexp.data import LlavaJsonConfig
from mmexp.errors import ConfigError, DataError
from mmexp.prompt import SegmentTokenizer
from mmexp.shapes import WorldConfig, draw_scene
from mmexp.shapes.chinese import WORDS as ZH
from mmexp.shapes.rows import retrieval_rows
from mmexp.shapes.world import STAMP
from tests.shared_data import load_template

EVALUATIONS = [
    f"{split}_{benchmark}" for split in ("heldout_images", "heldout_combos") for benchmark in
    ("vqa", "caption", "grounding", "retrieval")
]  # fmt: skip

TASKS = ["task_questions", "task_boxes", "task_caption", "task_detail", "task_chat"]
PARTS = Path(mmexp.shapes.__file__).parent / "parts"


def small(root: Path, **changes: float) -> WorldConfig:
    return replace(
        WorldConfig(
            root=str(root),
            align_rows=4,
            instruct_rows=20,
            vqa_per_type=2,
            caption_rows=2,
            grounding_rows=4,
            retrieval_rows=3,
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "shapes"
    small(root, pretrain_pair_rows=3).prepare()
    return root


def rows_of(root: Path, name: str) -> list[dict]:
    return json.loads((root / f"{name}.json").read_text(encoding="ascii"))


def test_files_and_pictures(world: Path) -> None:
    names = ["captions", "align", "align_zh", "instruct", "pretrain_pairs", *TASKS, *EVALUATIONS]
    assert sorted(path.stem for path in world.glob("*.json")) == sorted([*names, "world"])
    for name in names:
        for row in rows_of(world, name):
            assert [said["from"] for said in row["conversations"]] == ["human", "gpt"] * (
                len(row["conversations"]) // 2
            )
            assert row["conversations"][0]["value"].count("<image>") == 1
            with Image.open(world / row["image"]) as image:
                assert image.size == (144, 144)
    counts = [len(rows_of(world, name)) for name in EVALUATIONS]
    assert counts == [14, 2, 4, 3, 7, 1, 2, 1]


def test_each_task_has_pictures_of_its_own(world: Path) -> None:
    rows = {name: rows_of(world, name) for name in TASKS}
    assert [len(found) for found in rows.values()] == [9, 4, 4, 1, 2]
    assert all(row["type"] == name.removeprefix("task_") for name, found in rows.items() for row in found)
    pictures = [row["image"] for found in rows.values() for row in found]
    assert sorted(pictures) == sorted(row["image"] for row in rows_of(world, "instruct"))


def test_chinese_captions_say_what_the_english_ones_say(world: Path) -> None:
    english = {row["image"]: row["conversations"][1]["value"] for row in rows_of(world, "captions")}
    for row in rows_of(world, "align_zh"):
        asked, said = (turn["value"] for turn in row["conversations"])
        assert asked == "<image>\nGenerate the caption in Chinese:"
        scene = draw_scene(0, "train", int(Path(row["image"]).stem))
        assert row["image"] in english
        counts = [sum(t.full == thing.full for t in scene.things) for thing in scene.things]
        for thing, count in zip(scene.things, counts, strict=True):
            name = ZH[thing.size] + ZH[thing.colour] + (ZH[thing.name] if thing.kind == "shape" else "")
            assert ("", "两个", "三个", "四个")[count - 1] + name in said


def test_chinese_is_written_in_bytes_by_the_small_tokenizers(world: Path) -> None:
    """No unknown token, nothing lost; three tokens a character, since the vocabulary has no Chinese word."""
    said = [row["conversations"][1]["value"] for row in rows_of(world, "align_zh")]
    words = AutoTokenizer.from_pretrained(PARTS / "language")
    for text in said:
        ids = words(text, add_special_tokens=False).input_ids
        assert words.decode(ids) == text
        assert words.unk_token_id not in ids
        assert 2.5 * len(text) < len(ids) <= 3 * len(text)


def test_boxes_as_regions_are_the_same_text_where_the_template_writes_decimals(world: Path) -> None:
    processor_of = {
        boxes: LlavaJsonConfig(path=str(world / "instruct.json"), boxes=boxes).build() for boxes in ("text", "regions")
    }
    template, tokenizer = (
        load_template("vicuna_v1"),
        SegmentTokenizer(AutoTokenizer.from_pretrained(PARTS / "language")),
    )
    num_regions = 0
    for index in range(20):
        plain, marked = (data[index] for data in processor_of.values())
        num_regions += sum(isinstance(part, Region) for turn in marked.turns for part in turn.parts)
        one, other = (tokenizer.encode(template.render(s.turns), {"image": 3}) for s in (plain, marked))
        assert (one.ids, one.supervised) == (other.ids, other.supervised)
    assert num_regions > 5


def test_evaluation_rows_say_what_is_right(world: Path) -> None:
    for name in EVALUATIONS:
        for row in rows_of(world, name):
            assert row["type"]
            assert row.get("targets") or name.endswith("retrieval")
            assert ("box" in row) == name.endswith("grounding")
    for row in rows_of(world, "heldout_images_grounding"):
        assert row["targets"][0] == "[" + ", ".join(f"{value:.2f}" for value in row["box"]) + "]"


def test_captions_to_be_found_all_differ() -> None:
    for split in ("heldout_images", "heldout_combos"):
        rows = list(retrieval_rows(partial(draw_scene, 0), split, 100))
        assert len({row["conversations"][1]["value"] for row in rows}) == len({row["image"] for row in rows}) == 100


def test_a_second_call_touches_nothing(tmp_path: Path) -> None:
    config = small(tmp_path / "w")
    assert isinstance(config, Preparable)
    config.prepare()
    (tmp_path / "w" / "align.json").write_text("mine")
    config.prepare()
    assert (tmp_path / "w" / "align.json").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "w"]


def test_changed_settings_render_anew(tmp_path: Path) -> None:
    small(tmp_path / "w").prepare()
    small(tmp_path / "w", align_rows=2).prepare()
    assert len(rows_of(tmp_path / "w", "align")) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "w"]


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        small(tmp_path / name, seed=seed).prepare()
    read = {name: [(tmp_path / name / file).read_bytes() for file in ("instruct.json", "images/train/000001.png")]
            for name in "abc"}  # fmt: skip
    assert read["a"] == read["b"]
    assert read["a"][0] != read["c"][0]
    assert read["a"][1] != read["c"][1]


def test_a_wide_world_has_round_circles_in_wide_pictures(tmp_path: Path) -> None:
    small(tmp_path / "w", aspect=1.5).prepare()
    sizes = set()
    for row in rows_of(tmp_path / "w", "heldout_images_grounding"):
        width, height = Image.open(tmp_path / "w" / row["image"]).size
        sizes.add((width, height))
        if not any(kind in row["conversations"][0]["value"] for kind in ("digit", "letter")):
            left, top, right, bottom = row["box"]
            assert (right - left) * width == pytest.approx((bottom - top) * height, abs=0.02 * width)
    assert sizes == {(216, 144)}
    with pytest.raises(ConfigError, match=r"(?s)aspect: 9.*0\.5 to 3"):
        small(tmp_path / "v", aspect=9)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="not a rendered world"):
        small(tmp_path).prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_rendering_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmexp.shapes.world.grounding_rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "w").prepare()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error_and_keeps_the_old_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path / "w").prepare()
    before = (tmp_path / "w" / STAMP).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match="disk is full"):
        small(tmp_path / "w", seed=5).prepare()
    assert (tmp_path / "w" / STAMP).read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "w"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="cannot write"):
        small(tmp_path / "w").prepare()


def test_a_file_in_the_way_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        small(tmp_path / "file" / "w").prepare()
