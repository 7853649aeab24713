"""Columns to samples, image folders, CSV; parquet and saved datasets where the `datasets` package is installed."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from mmexp.data import Columns, ImageFolderConfig, TableConfig
from mmexp.data.readers.tables import TableDataset
from mmexp.errors import DataError
from tests.data.readers.make import complaint, everything, flat, jpeg, write

TALK = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]


def table(tmp_path, rows, **options):
    return TableDataset(rows, TableConfig(path="t", prompts=("p",), **options), str(tmp_path / "t.parquet"), tmp_path)


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"image": {"bytes": b"x", "path": "a.jpg"}, "text": "c"}, [("user", b"x", "\np"), ("assistant", "c")]),
        ({"image": b"x", "caption": ["c", "d"]}, [("user", b"x", "\np"), ("assistant", "c")]),
        ({"image": b"x", "question": "q", "answers": ["n", "y", "y"]}, [("user", b"x", "\nq"), ("assistant", "y")]),
        ({"query": "q", "response": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"images": [b"x"], "conversations": TALK}, [("user", b"x", "q"), ("assistant", "a")]),
        (
            {"images": [b"x", b"y"], "texts": [{"user": "q", "assistant": "a", "source": "s"}] * 2},
            [("user", b"x", b"y", "\nq"), ("assistant", "a"), ("user", "q"), ("assistant", "a")],
        ),
        (
            {"image": None, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            [("user", "q"), ("assistant", "a")],
        ),
    ],
)
def test_usual_columns(tmp_path, row, turns):
    (sample,) = everything(table(tmp_path, [row]))
    assert flat(sample) == turns


def test_captions_in_a_list_are_references(tmp_path):
    (sample,) = everything(table(tmp_path, [{"image": b"x", "captions": ["c", "d"]}]))
    assert (sample.turns[1].text, sample.meta) == ("c", {"targets": ["c", "d"]})


def test_lettered_columns_are_options(tmp_path):
    row = {"image": b"x", "question": "Which?", "A": "salt", "B": "tin", "C": float("nan"), "answer": "B"}
    rows = [row | {"hint": "Look."}, row | {"hint": float("nan"), "C": "ice"}, row | {"B": None}]
    hinted, three, one = everything(table(tmp_path, rows, suffix="!"))
    assert flat(hinted) == [("user", b"x", "\nLook.\nWhich?\nA. salt\nB. tin!"), ("assistant", "B")]
    assert hinted.meta["options"] == ["salt", "tin"]
    assert flat(three)[0] == ("user", b"x", "\nWhich?\nA. salt\nB. tin\nC. ice!")
    assert flat(one)[0] == ("user", b"x", "\nWhich?!")
    assert "options" not in one.meta


def test_named_columns_and_paths(tmp_path):
    columns = Columns(image="photo", text="alt", id="key")
    (sample,) = everything(
        table(tmp_path, [{"photo": {"path": "a/b.jpg"}, "alt": "c", "key": 7, "more": 1}], columns=columns)
    )
    assert (sample.id, sample.meta, flat(sample)[0][1]) == ("7", {"more": 1}, tmp_path / "a/b.jpg")
    picture = Image.new("RGB", (2, 2))
    assert table(tmp_path, [{"image": picture, "text": "c"}])[0].turns[0].media[0].source is picture


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"image": b"x"}, {}, "the columns image\n"),
        ({"text": "c"}, {"columns": Columns(image="photo")}, "no column 'photo'"),
        ({"image": 3, "text": "c"}, {}, "a picture is 3"),
        ({"image": {"path": "/a"}, "text": "c"}, {}, "row 0: the image path '/a' is absolute"),
        ({"image": b"x", "text": ""}, {}, "`text` is empty"),
        ({"image": b"x", "captions": ["c", 3]}, {}, "`text` is 3"),
        ({"image": b"x", "question": "q", "answer": None}, {}, "`answer` is None"),
        ({"images": [], "conversations": TALK}, {}, "1 <image> in the human turns and 0"),
        ({"images": [b"x"], "texts": [3]}, {}, "a pair is 3"),
    ],
)
def test_broken_rows(tmp_path, row, options, message):
    with pytest.raises(DataError) as error:
        everything(table(tmp_path, [row], **options))
    assert message in str(error.value), str(error.value)
    assert "t.parquet" in str(error.value)


def test_no_row_and_limit(tmp_path):
    with pytest.raises(DataError, match="no row"):
        table(tmp_path, [])
    data = table(tmp_path, [{"text": str(number)} for number in range(5)], limit=2)
    assert [sample.turns[1].text for sample in everything(data)] == ["0", "1"]
    assert data.fingerprint != table(tmp_path, [{"text": str(number)} for number in range(5)]).fingerprint


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    found = complaint(TableConfig(path=str(write(tmp_path, b"PAR1", "a.parquet"))))
    assert "the package `datasets` is not installed" in found
    assert "pip install 'mmexp[tables]'" in found


def test_splits_are_never_mixed(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write(tmp_path, b"PAR1", f"data/{name}.parquet")
    assert "2 splits and none is chosen\n  expected: one of test, train" in complaint(TableConfig(path=str(tmp_path)))
    assert "no split 'val'" in complaint(TableConfig(path=str(tmp_path), split="val"))


def test_empty_folder(tmp_path):
    assert "no parquet file and no saved dataset" in complaint(TableConfig(path=str(tmp_path)))
    assert "does not exist" in complaint(TableConfig(path=str(tmp_path / "x")))


def saved(datasets):
    rows = {"image": [{"bytes": jpeg(n + 1), "path": None} for n in range(3)], "text": ["a", "b", "c"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("form", ["parquet", "disk", "dict"])
def test_football_captions(tmp_path, form):
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    whole = saved(datasets)
    path = tmp_path / "football.parquet" if form == "parquet" else tmp_path / "football"
    if form == "parquet":
        whole.to_parquet(str(path))
    else:
        (whole if form == "disk" else datasets.DatasetDict(train=whole, test=whole)).save_to_disk(str(path))
    samples = everything(TableConfig(path=str(path), split="train" if form == "dict" else None).build())
    assert [sample.turns[1].text for sample in samples] == ["a", "b", "c"]
    assert [sample.turns[0].media[0].source for sample in samples] == [jpeg(1), jpeg(2), jpeg(3)]


def test_imagefolder(tmp_path):
    write(tmp_path / "a", 'file_name,text,n\n1.jpg,"a, ""b""\nc",1\nsub/2.jpg,two,\n', "metadata.csv")
    first, second = everything(ImageFolderConfig(path=str(tmp_path / "a"), prompts=("p",)).build())
    assert flat(first) == [("user", tmp_path / "a/1.jpg", "\np"), ("assistant", 'a, "b"\nc')]
    assert (first.dataset, first.meta, flat(second)[0][1]) == ("a", {"n": "1"}, tmp_path / "a/sub/2.jpg")
    write(tmp_path / "b", '{"file_name": "1.jpg", "text": "t"}\n', "metadata.jsonl")
    assert flat(ImageFolderConfig(path=str(tmp_path / "b")).build()[0])[1] == ("assistant", "t")
    path = str(write(tmp_path, "where;x\n", "c.csv"))
    assert "no row" in complaint(ImageFolderConfig(path=path))
    path = str(write(tmp_path, "where,what\n1.jpg,one\n", "c.csv"))
    named = ImageFolderConfig(path=path, columns=Columns(image="where", text="what")).build()
    assert flat(named[0])[0][1] == tmp_path / "1.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file_name,text\n1.jpg,\xff\n", "byte 21 is not UTF-8"),
        (b"file_name,text\n1.jpg,a,b\n", "metadata.csv:2: 3 fields"),
        (b'file_name,text\n1.jpg,"a\n', "broken CSV"),
        (b"text,text\n1,2\n", "the header is"),
        (b"", "the header is"),
        (b"file_name,text\n,a\n", "`file_name` is empty"),
        (b"file_name,text\n1.jpg,\n", "`text` is empty"),
        (b"file_name,text\n../1.jpg,a\n", "leaves the image folder"),
        (b"file_name,n\n1.jpg,a\n", "the columns file_name, n"),
    ],
)
def test_broken_metadata(tmp_path, content, message):
    write(tmp_path, content, "metadata.csv")
    found = complaint(ImageFolderConfig(path=str(tmp_path)))
    assert message in found, found


def test_folder_without_or_with_two_metadata_files(tmp_path):
    write(tmp_path, jpeg(), "1.jpg")
    assert "no metadata file, but 1.jpg" in complaint(ImageFolderConfig(path=str(tmp_path)))
    write(tmp_path, "", "metadata.csv")
    write(tmp_path, "", "metadata.jsonl")
    assert "two metadata files" in complaint(ImageFolderConfig(path=str(tmp_path)))


def test_a_folder_with_broken_rows_can_be_looked_at(tmp_path):
    write(tmp_path, "file_name,text\na.jpg,t\n../b.jpg,t\n", "metadata.csv")
    data, errors = ImageFolderConfig(path=str(tmp_path)).build_tolerant()
    assert [sample.turns[1].text for sample in everything(data)] == ["t"]
    assert len(errors) == 1
    assert data.name == tmp_path.name


@pytest.mark.parametrize("source", [jpeg(8, 4), Image.new("RGB", (8, 4))], ids=["bytes", "picture"])
def test_columns_beside_the_messages_count(tmp_path, source):
    messages = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "<bbox>"}]
    row = {"image": source, "messages": messages, "objects": {"ref": [], "bbox": [[0, 2, 4, 4]]}, "system": "s"}
    (sample,) = everything(table(tmp_path, [row]))
    assert flat(sample)[::2] == [("system", "s"), ("assistant", ("", 0, (0.0, 0.5, 0.5, 1.0)))]
    with pytest.raises(DataError, match=r"row 0: `tools` is"):
        everything(table(tmp_path, [{**row, "tools": [{"name": "x"}]}]))
