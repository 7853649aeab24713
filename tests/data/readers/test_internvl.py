"""InternVL's mixture file: parts with a broken number of repeats."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmexp.data import InternVlMixtureConfig
from mmexp.data.readers.internvl import RepeatedParts
from tests.data.readers.make import complaint, everything, write
from tests.data.samples import Samples, make_sample


def mixture(folder, **entries):
    for name, count in (("a", 4), ("b", 3)):
        talk = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a b"}]
        rows = [{"id": f"{name}{n}", "image": f"{n}.jpg", "conversations": talk} for n in range(count)]
        write(folder, "\n".join(map(json.dumps, rows)), f"{name}.jsonl")
    return InternVlMixtureConfig(path=str(write(folder, entries, "mix.json")), data_root=str(folder))


def test_parts_follow_each_other(tmp_path, caplog):
    caplog.set_level("INFO")
    one = {"root": "pics", "annotation": "a.jsonl", "repeat_time": 1.5, "length": 9, "data_augment": False, "odd": 1}
    data = mixture(tmp_path, one=one, two={"root": "", "annotation": "b.jsonl", "repeat_time": 0.7}).build()
    assert [sample.id for sample in everything(data)] == ["a0", "a1", "a2", "a3", "a0~1", "a1~1", "b0", "b1"]
    assert (data[0].dataset, data[-1].dataset) == ("one", "two")
    assert data[0].turns[0].media[0].source == str(tmp_path.resolve() / "pics/0.jpg")
    assert data.hints().tolist() == [3] * 8
    for message in ("data_augment is for the processor", "odd is not known", "`length` is 9, the file has 4 rows"):
        assert message in caplog.text


@given(st.lists(st.tuples(st.integers(1, 6), st.floats(0.05, 4.0)), min_size=1, max_size=4))
def test_every_row_is_read_as_often_as_asked(parts):
    made = [(Samples(make_sample(f"{p}.{n}") for n in range(size)), times) for p, (size, times) in enumerate(parts)]
    data = RepeatedParts(made)
    ids = [data[index].id for index in range(len(data))]
    assert len(set(ids)) == len(ids)
    for part, (size, times) in enumerate(parts):
        counts = [sum(found.split("~")[0] == f"{part}.{n}" for found in ids) for n in range(size)]
        assert sum(counts) == max(1, int(size * times + 1e-9))
        assert sorted(counts, reverse=True) == counts
        assert counts[0] - counts[-1] <= 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"root": "x"}, "mix.json:1 (one): an entry is"),
        ({"annotation": "a.jsonl", "repeat_time": 0}, "`repeat_time` is 0"),
        ({"annotation": "a.jsonl", "repeat_time": "2"}, "`repeat_time` is '2'"),
        ({"annotation": "none.jsonl"}, "does not exist"),
    ],
)
def test_broken_entries(tmp_path, entry, message):
    assert message in complaint(mixture(tmp_path, one=entry))


def test_no_entry(tmp_path):
    assert "no data set" in complaint(mixture(tmp_path))


def test_broken_rows_are_left_out_and_told_of(tmp_path):
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    write(tmp_path, [{"conversations": talk}, {"conversations": []}], "a.json")
    write(tmp_path, [{"conversations": []}], "b.json")
    entries = {name: {"annotation": f"{name}.json", "repeat_time": 2} for name in "ab"}
    config = InternVlMixtureConfig(path=str(write(tmp_path, entries, "mix.json")), data_root=str(tmp_path))
    data, errors = config.build_tolerant()
    assert [sample.id for sample in everything(data)] == ["row-0", "row-0~1"]
    assert [error.found for error in errors] == ["`conversations` is []"] * 2
    assert len(data.hints()) == 2
