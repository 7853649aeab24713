"""Strict JSON in pieces: the same rows and places whatever the size of a piece, and every mistake with its line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmexp.data import jsontext
from mmexp.data.files import SteadyFile
from mmexp.data.rowstore import FileRows
from mmexp.data.sources import iterate_members, iterate_rows, iterate_under, outline
from mmexp.errors import DataError
from tests.data.readers.make import write

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def read(rows, file):
    return [json.loads(file.read(row.start, row.end - row.start)) for row in rows]


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=6), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_pieces_of_any_size_give_the_same_rows(tmp_path_factory, values, size, indent, ascii_only):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    file, before = SteadyFile(path), jsontext._CHUNK_BYTES
    try:
        jsontext._CHUNK_BYTES = size
        rows = list(iterate_rows(file))
    finally:
        jsontext._CHUNK_BYTES = before
    assert [row.value for row in rows] == values
    assert read(rows, file) == values
    text = path.read_bytes()
    assert [row.line for row in rows] == [text[: row.start].count(b"\n") + 1 for row in rows]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=5), st.integers(1, 40))
def test_members_are_read_back_with_their_keys(tmp_path_factory, members, size):
    import numpy as np

    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(
        json.dumps({key: {"v": value} for key, value in members.items()}, indent=1, ensure_ascii=False),
        encoding="utf-8",
    )
    file, before = SteadyFile(path), jsontext._CHUNK_BYTES
    try:
        jsontext._CHUNK_BYTES = size
        rows = list(iterate_members(file))
    finally:
        jsontext._CHUNK_BYTES = before
    starts, ends = (np.asarray([row[place] for row in rows], dtype=np.int64) for place in (1, 2))
    back = FileRows(file, starts, ends, keyed=True)
    assert [back[index] for index in range(len(back))] == [{"id": key, "v": value} for key, value in members.items()]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.integers(1, 9))
def test_any_bytes_are_rows_or_a_named_mistake(tmp_path_factory, content, size):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(b"[" + content)
    before = jsontext._CHUNK_BYTES
    message = ""
    try:
        jsontext._CHUNK_BYTES = size
        list(iterate_rows(SteadyFile(path)))
    except DataError as error:
        message = error.render()
    finally:
        jsontext._CHUNK_BYTES = before
    try:
        json.loads(path.read_bytes().decode())
    except ValueError:
        assert "a.json" in message


@pytest.mark.parametrize("size", [1, 7, 1 << 22])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"a": 1e999}]', ":2 (row begins here): the number 1e999"),
        ('[{"a": -Infinity}]', ":1 (row begins here): -Infinity"),
        ('[{"a": NaN}]', "NaN, which is not JSON"),
        ('[\n\n{"a": {"b": 1, "b": 2}}]', ":3 (row begins here): the key 'b' twice"),
        ('[{"a": "\\udc00"}]', "half of a surrogate pair"),
        ('[{"\\uD800": 1}]', "half of a surrogate pair"),
        ('[{"a": 1},\n{"b": yes}]', ":2: broken JSON: Expecting value at 'yes}]'"),
        ('[{"a": "x', "the file ends inside a row"),
        ('[{"a": 1}, ', "the file ends inside a row"),
        ('[{"a": "x\ny"}]', "Invalid control character"),
        ("[" * 100_000, "recursion"),
        ("[1" + "0" * 5000 + "]", "digit"),
        ('[{"a": 1}]]', "']' after the list"),
        (b'[{"a": "\xff"}]', "byte 8 is not UTF-8"),
        (b'[{"a": "\xe4\xb8"', "byte 8 is not UTF-8"),
        (b'[{"a": "x"}, "\xe4\xb8', "byte 14 is not UTF-8"),
        ("\ufeff[1]".encode("utf-16-le"), "byte 0 is not UTF-8"),
    ],
)
def test_mistake_in_a_list(tmp_path, monkeypatch, size, content, message):
    monkeypatch.setattr(jsontext, "_CHUNK_BYTES", max(size, len(content) // 50))
    with pytest.raises(DataError) as error:
        list(iterate_rows(SteadyFile(write(tmp_path, content))))
    assert message in str(error.value), str(error.value)


def test_lines_know_their_bytes(tmp_path):
    path = write(tmp_path, '\ufeff\n{"a": "\u4e2d"}\r\n  {"a": 2}\n\n{"a": 3}', "d.jsonl")
    file = SteadyFile(path)
    rows = list(iterate_rows(file))
    assert [(row.line, row.value["a"]) for row in rows] == [(2, "\u4e2d"), (3, 2), (5, 3)]
    assert read(rows, file) == [row.value for row in rows]
    with pytest.raises(DataError, match=r"d\.jsonl:2: .* after the row"):
        list(iterate_rows(SteadyFile(write(tmp_path, '{"a": 1}\n{"a": 2} {"a": 3}\n', "d.jsonl"))))
    with pytest.raises(DataError, match="byte 15 is not UTF-8"):
        list(iterate_rows(SteadyFile(write(tmp_path, b'{"a": 1}\n{"a":"\xff"}\n', "d.jsonl"))))


def test_a_list_under_a_key(tmp_path):
    file = SteadyFile(write(tmp_path, {"info": {"x": [1]}, "images": [1, 2], "annotations": [{"a": 1}, {"a": 2}]}))
    rows = list(iterate_under(file, "annotations"))
    assert [row.value for row in rows] == read(rows, file) == [{"a": 1}, {"a": 2}]
    assert list(outline(file)) == [("info", {"x": [1]}), ("images", [1]), ("annotations", [{"a": 1}])]
    for content, key, message in [
        ({"images": []}, "annotations", "an object with images"),
        ({"annotations": {}}, "annotations", "`annotations` is"),
        ([1], "annotations", "expected: one object"),
        ("", "annotations", "an empty file"),
        ('{"a": [1], "a": [2]}', "a", "the key 'a' twice"),
        ('{"a": [1]', "a", "the file ends inside the object"),
        ('{"a" [1]}', "a", "a colon after a key"),
        ('{"a": [1]} 2', "a", "'2' after the object"),
    ]:
        with pytest.raises(DataError) as error:
            list(iterate_under(SteadyFile(write(tmp_path, content, "b.json")), key))
        assert message in str(error.value), str(error.value)
