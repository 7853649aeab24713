"""The look at the data before a run starts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

from mmexp.contracts import Sample
from mmexp.data import LlavaJsonConfig, fingerprint, preflight, require_trainable
from mmexp.errors import DataError
from tests.data.samples import Samples, make_processor, make_sample, mixed


def test_good_data_passes_and_is_described():
    report = preflight(mixed(50), make_processor(), max_rows=20)
    require_trainable(report)
    assert report.num_rows == 50
    assert report.num_tokenised == 20
    assert sum(report.histogram().values()) == 20
    assert set(report.histogram()) <= {"1-8", "9-16"}


def test_more_than_one_percent_without_supervision_refuses():
    samples = [make_sample(f"mute{n}", "  ") for n in range(2)] + [make_sample(str(n)) for n in range(98)]
    with pytest.raises(DataError, match=r"2 of 100 samples \(2.0%\)") as error:
        require_trainable(preflight(Samples(samples), make_processor()))
    assert "'mute0', 'mute1'" in error.value.where
    assert error.value.fix
    require_trainable(preflight(Samples(samples[1:] + samples[2:]), make_processor()))


def test_too_long_data_refuses():
    samples = Samples([*mixed(8), make_sample("long", "x" * 99), make_sample("longer", "x" * 99)])
    with pytest.raises(DataError, match="too_long") as error:
        require_trainable(preflight(samples, make_processor()))
    assert "max_length_tokens" in error.value.fix


def test_cut_turns_are_counted():
    one = make_sample("c")
    long = Sample(id="c", turns=one.turns + make_sample("d", "x" * 99).turns)
    assert preflight(Samples([long]), make_processor()).num_cut == 1


def test_rows_with_shortened_answers_are_counted_and_told():
    base = make_processor()
    limited = replace(base, template=replace(base.template, max_answer_tokens=4))
    report = preflight(Samples([make_sample("a", "y" * 9), make_sample("b", "y")]), limited)
    assert (report.num_cut, report.num_cut_answers) == (0, 1)
    assert report.cuts() == "of 2 rows looked at 1 lose part of an answer (template.max_answer_tokens)"
    assert preflight(mixed(3), base).cuts() == ""


def test_row_without_answer_and_missing_file_are_found_beyond_the_tokenised_ones(tmp_path):
    def row(number):
        turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]
        return {"id": f"r{number}", "image": f"{number}.png", "conversations": turns[: 1 if number == 7 else 2]}

    for number in range(9):
        Image.new("1", (1, 1)).save(tmp_path / f"{number}.png")
    (tmp_path / "d.json").write_text(json.dumps([row(number) for number in range(10)]))
    data = LlavaJsonConfig(path=str(tmp_path / "d.json")).build()
    report = preflight(data, make_processor(), max_rows=1)
    with pytest.raises(DataError, match="'r7': a conversation without an answer"):
        require_trainable(report)
    assert len(report.files) == 9
    report.errors.clear()
    with pytest.raises(DataError, match=r"1 of 9 samples .*\n.*'r9', .*9.png: .*No such file") as error:
        require_trainable(report)
    assert "bad_media_cap" in error.value.fix
    require_trainable(report, bad_media_cap=0.2)


def test_fingerprint_sees_a_changed_row():
    assert fingerprint(mixed(9)) == fingerprint(mixed(9))
    assert fingerprint(mixed(9)) != fingerprint(mixed(10))
    assert fingerprint(mixed(9)) != fingerprint(Samples([*mixed(8), make_sample("8", "other")]))
