"""The look at every row: each problem is found, and nothing else is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.data.inspect import KINDS, Inspection, inspect_data
from tests.data.samples import Samples, make_processor


def sample(name: str, file: Path | None, question: str = "what", answers: tuple[str, ...] = ("yes",)) -> Sample:
    turns = []
    for number, answer in enumerate(answers):
        media = (Medium(source=str(file)),) if file and not number else ()
        turns.append(Turn(role="user", parts=(*media, Text(text=f"{question}{number}"))))
        turns.append(Turn(role="assistant", parts=(Text(text=answer),)))
    return Sample(id=name, dataset="demo", turns=tuple(turns))


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a picture whose content follows from its name."""

    def make(name: str) -> Path:
        path = tmp_path / f"{name}.png"
        seed = sum(map(ord, name))
        Image.new("RGB", (8 + len(name), 6), (seed % 256, 3 * seed % 256, 7)).save(path)
        return path

    return make


def kinds(report: Inspection) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in report.problems:
        found.setdefault(problem.kind, []).append(problem.id)
    return found


def test_flawless_data_has_no_problem(picture: Callable[[str], Path]) -> None:
    rows = Samples(sample(str(n), picture(f"p{n}"), question=f"q{n}") for n in range(300))
    done: list[int] = []
    report = inspect_data(rows, make_processor(), on_progress=lambda number, total: done.append(number))
    assert report.problems == []
    assert report.num_rows == len(report.lengths) == 300
    assert report.num_media == [1] * 300
    assert sum(report.sizes.values()) == 300
    assert done[-1] == 300


def test_every_kind_of_problem_is_found_once(picture: Callable[[str], Path], tmp_path: Path) -> None:
    rows = [sample(f"fine{n}", picture(f"f{n}"), question=f"q{n}") for n in range(20)]
    damaged = picture("damaged")
    damaged.write_bytes(damaged.read_bytes()[:30])
    other = Samples([sample("elsewhere", picture("shared")), sample("words", None, question="only words")])
    copy = tmp_path / "copy.png"
    shutil.copy(picture("shared"), copy)
    rows += [
        sample("damaged", damaged, question="d"),
        sample("missing", tmp_path / "gone.png", question="m"),
        sample("mute", picture("mute"), question="u", answers=("",)),
        sample("long", picture("long"), question="l" * 99),
        sample("cut", picture("cut"), question="c", answers=("yes", "no" * 40)),
        sample("clipped", None, question="p", answers=("y" * 52,)),
        sample("again", picture("f3"), question="q3"),
        sample("fine4", picture("same id"), question="i"),
        sample("leaks", copy, question="k"),
        sample("leaks too", None, question="only words"),
        Sample(id="unasked", dataset="demo", turns=rows[0].turns[1:]),
    ]
    base = make_processor()
    limited = replace(base, template=replace(base.template, max_answer_tokens=45))
    report = inspect_data(Samples(rows), limited, against=[other])
    assert kinds(report) == {
        "media": ["damaged", "missing"],
        "no_supervision": ["mute"],
        "too_long": ["long"],
        "cut": ["cut"],
        "cut_answer": ["clipped"],
        "duplicate": ["again"],
        "same_id": ["fine4"],
        "leak": ["leaks", "leaks too"],
        "format": ["unasked"],
    }
    assert set(kinds(report)) == set(KINDS)
    assert report.num_errors == 7
    assert list(report.counts) == [kind for kind in KINDS if report.counts[kind]]
    assert (
        next(p for p in report.problems if p.kind == "leak").detail == "the picture is also in demo, sample 'elsewhere'"
    )


def test_threads_change_nothing(picture: Callable[[str], Path]) -> None:
    rows = Samples(sample(str(n), picture(f"p{n % 40}"), question=f"q{n % 50}") for n in range(90))
    one, many = (inspect_data(rows, make_processor(), num_threads=number) for number in (1, 5))
    assert one == many
    assert one.counts == {}
