"""From pictures to filter_cap.json: what is kept, what is listed, and what a killed process leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.data import MiniGpt4CaptionsConfig
from mmexp.data.caption import Captioning, Description, draw_rows
from mmexp.data.rewrite import Rewritten
from mmexp.data.workfile import WorkFile
from mmexp.errors import ConfigError, DataError

FINE = "A brown dog runs over the wet grass."
SAID = {
    0: (FINE, False),
    1: ("A dog runs. A brown dog sits. A brown dog sits.", False),
    2: ("A brown dog runs over the", True),
    3: ("A man a man a man walks.", False),
}
MENDED = {1: "A dog runs, and a brown dog sits.", 2: "A brown dog runs over", 3: "It is already correct."}


@pytest.fixture
def rows(tmp_path: Path) -> list[Sample]:
    """Four pictures, one of them twice, a broken one, and a row without a picture."""
    sources: list[Any] = []
    for index, name in enumerate(["0.jpg", "1.png", "2.jpg", "3.png"]):
        Image.new("RGB", (20 + index, 12), (40 * index, 9, 9)).save(tmp_path / name)
        sources.append(str(tmp_path / name))
    (tmp_path / "4.jpg").write_bytes(b"no picture")
    sources[3] = (tmp_path / "3.png").read_bytes()
    sources += [str(tmp_path / "4.jpg"), sources[0], None]
    words = Text(text="What?")
    parts = [(words,) if source is None else (Medium(source=source), words) for source in sources]
    return [Sample(id=f"r{number}", turns=(Turn(role="user", parts=own),)) for number, own in enumerate(parts)]


def speak(pictures: Sequence[tuple[str, Medium]]) -> list[Description]:
    found = [SAID[int(key[1:])] for key, _ in pictures]
    return [Description(text=text, num_tokens=9, is_cut=cut, is_continued=cut) for text, cut in found]


class Mender:
    """Answers from a table; rows in `failing` get no text."""

    batch_size = 2

    def __init__(self, *failing: int) -> None:
        self.failing, self.asked = failing, list[str]()

    def rewrite(self, texts: Sequence[str]) -> list[Rewritten]:
        self.asked += texts
        numbers = [next(number for number, (said, _) in SAID.items() if said == text) for text in texts]
        return [
            Rewritten(failure="HTTP 500") if number in self.failing else Rewritten(text=MENDED.get(number, FINE))
            for number in numbers
        ]


def job(rows: list[Sample], out: Path, chosen: Sequence[int] | None = None, **settings: Any) -> Captioning:
    work = WorkFile(out / "work.jsonl", {"prompt": "p", **settings})
    return Captioning(rows, chosen or range(len(rows)), work, out)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_passes_is_kept_as_cc_sbu_align_reads_it(rows: list[Sample], tmp_path: Path) -> None:
    out = tmp_path / "out"
    doing = job(rows, out)
    assert list(doing.describe(speak, batch_size=3)) == [3, 6, 7]
    assert list(doing.rewrite(Mender())) == [2, 3]
    report = doing.finish()
    assert json.loads((out / "report.json").read_text()) == report == {
        "rows": 7, "described": 4, "continued": 1,
        "flagged": {"repeated_sentence": 1, "cut": 1, "unfinished": 1, "no_sentence": 1, "repeated_words": 1},
        "rewritten": 3, "kept": 2, "kept_after_rewriting": 1,
        "rejected": {"no_sentence": 1, "unfinished": 1, "repeated_words": 1, "unreadable": 1, "same_picture": 1,
                     "no_picture": 1},
    }  # fmt: skip
    data = MiniGpt4CaptionsConfig(path=str(out / "filter_cap.json"), image_root=str(out)).build()
    assert [(sample.id, sample.turns[-1].text) for sample in (data[0], data[1])] == [("0", FINE), ("1", MENDED[1])]
    assert len(data) == 2
    assert (out / "image/0.jpg").read_bytes() == (tmp_path / "0.jpg").read_bytes(), "a JPEG keeps its bytes"
    with Image.open(out / "image/1.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (21, 12))
    assert sorted(path.name for path in (out / "image").iterdir()) == ["0.jpg", "1.jpg"]
    rejected = {entry["row"]: entry for entry in lines(out / "rejected.jsonl")}
    assert rejected[2]["reasons"] == ["no_sentence", "unfinished"]
    assert (rejected[2]["caption"], rejected[2]["rewritten"]) == (SAID[2][0], MENDED[2])
    assert rejected[3]["rewritten"] == SAID[3][0], "said to be correct, so it is what it was, and is judged as before"
    assert "no picture" not in rejected[4]["reasons"]
    assert "4.jpg" in rejected[4]["detail"]
    assert [rejected[row]["reasons"] for row in (5, 6)] == [["same_picture"], ["no_picture"]]


def test_without_a_rewriter_flaws_are_left_out_and_may_be_mended_later(rows: list[Sample], tmp_path: Path) -> None:
    doing = job(rows, tmp_path / "out")
    list(doing.describe(speak, 8))
    assert doing.finish()["kept"] == 1
    doing.work.close()
    later = job(rows, tmp_path / "out")
    assert list(later.describe(speak, 8)) == []
    mender = Mender()
    list(later.rewrite(mender))
    assert mender.asked == [SAID[row][0] for row in (1, 2, 3)]
    assert later.finish()["kept"] == 2


def test_all_may_be_rewritten_as_the_paper_did(rows: list[Sample], tmp_path: Path) -> None:
    doing = job(rows, tmp_path / "out")
    list(doing.describe(speak, 8))
    assert doing.to_rewrite(True) == [0, 1, 2, 3]
    list(doing.rewrite(Mender(), everything=True))
    assert doing.finish()["kept_after_rewriting"] == 2
    assert list(doing.rewrite(Mender(), everything=True)) == []


@pytest.mark.parametrize("left", [0, 1, 20, 200, 10_000])
def test_a_killed_process_loses_at_most_what_it_was_writing(rows: list[Sample], tmp_path: Path, left: int) -> None:
    """The work file cut at any byte; what comes out is what an uninterrupted process writes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        doing = job(rows, out)
        list(doing.describe(speak, 2))
        list(doing.rewrite(Mender()))
        doing.finish()
        doing.work.close()
    data = (cut / "work.jsonl").read_bytes()
    (cut / "work.jsonl").write_bytes(data[: max(0, len(data) - left)])
    again = job(rows, cut)
    list(again.describe(speak, 3))
    list(again.rewrite(Mender()))
    again.finish()
    for name in ("filter_cap.json", "rejected.jsonl", "report.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_process_that_dies_in_the_middle_goes_on_with_the_next_row(rows: list[Sample], tmp_path: Path) -> None:
    asked: list[str] = []

    def dies(pictures: Sequence[tuple[str, Medium]]) -> list[Description]:
        asked.extend(key for key, _ in pictures)
        if len(asked) > 2:
            raise KeyboardInterrupt
        return speak(pictures)

    doing = job(rows, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        list(doing.describe(dies, 2))
    doing.work.close()
    again = job(rows, tmp_path / "out")
    assert sorted(again.work.entries) == [0, 1]
    asked.clear()
    assert list(again.describe(speak, 2)) == [4, 6, 7]


def test_texts_that_fail_are_listed_and_asked_again(rows: list[Sample], tmp_path: Path) -> None:
    doing = job(rows, tmp_path / "out")
    list(doing.describe(speak, 8))
    list(doing.rewrite(Mender(1)))
    assert doing.finish()["rejected"]["not_rewritten"] == 1
    (failed,) = [entry for entry in lines(tmp_path / "out/rejected.jsonl") if "not_rewritten" in entry["reasons"]]
    assert (failed["row"], failed["detail"]) == (1, "HTTP 500")
    doing.work.close()
    again = job(rows, tmp_path / "out")
    assert again.to_rewrite(False) == [1]
    list(again.rewrite(Mender()))
    assert again.finish()["kept"] == 2


def test_several_failures_in_a_row_stop_and_lose_nothing(rows: list[Sample], tmp_path: Path) -> None:
    doing = job(rows, tmp_path / "out")
    list(doing.describe(speak, 8))
    with pytest.raises(DataError, match=r"3 texts in a row were not rewritten: HTTP 500.*\n.*same command goes on"):
        list(doing.rewrite(Mender(1, 2, 3)))
    doing.work.close()
    again = job(rows, tmp_path / "out")
    assert list(again.describe(speak, 8)) == []
    assert again.to_rewrite(False) == [1, 2, 3]


def test_nothing_that_passes_is_an_error_with_a_list(rows: list[Sample], tmp_path: Path) -> None:
    doing = job(rows, tmp_path / "out", [2, 4])
    list(doing.describe(speak, 8))
    with pytest.raises(DataError, match=r"none of 2 descriptions passed"):
        doing.finish()
    assert len(lines(tmp_path / "out/rejected.jsonl")) == 2
    assert not (tmp_path / "out/filter_cap.json").exists()


def test_a_folder_in_use_is_left_alone(rows: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"exists and has no work\.jsonl"):
        job(rows, tmp_path)
    doing = job(rows, tmp_path / "out")
    with pytest.raises(DataError, match="another process works on it"):
        job(rows, tmp_path / "out")
    doing.work.close()
    with pytest.raises(ConfigError, match=r"other settings of limit, prompt"):
        job(rows, tmp_path / "out", prompt="q", limit=3)
    job(rows, tmp_path / "out").work.close()
    with (tmp_path / "out/work.jsonl").open("a") as file:
        file.write("broken}\n")
    with pytest.raises(DataError, match="line 2 is no JSON"):
        job(rows, tmp_path / "out")


def test_rows_are_drawn_once_and_for_all() -> None:
    drawn = draw_rows(1000, 50, seed=0)
    assert drawn == draw_rows(1000, 50, seed=0) == sorted(set(drawn))
    assert drawn != draw_rows(1000, 50, seed=1)
    assert draw_rows(5, None, 0) == draw_rows(5, 9, 0) == [0, 1, 2, 3, 4]
