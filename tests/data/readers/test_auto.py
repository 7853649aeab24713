"""Formats told by content: every layout and real file, and an error that says what was seen."""

from __future__ import annotations

import gzip
import json
import pickle

import pytest

from mmexp import data as readers
from mmexp.data import AutoConfig
from mmexp.data.readers.sniff import sniff
from mmexp.errors import DataError
from tests.data.readers.make import caption_tar, everything, write
from tests.data.readers.test_captions_and_questions import REF
from tests.data.readers.test_conversations import QA, chat
from tests.shared_data import shared

QWEN = {"conversations": [{"from": "user", "value": "<img>a.jpg</img>"}, {"from": "assistant", "value": "a"}]}
ROWS = [
    ({"conversations": QA}, "LlavaJsonConfig"),
    ({"conversations": QA, "images": []}, "ShareGptConfig"),
    (QWEN, "QwenVlJsonConfig"),
    (chat("q", "a"), "MessagesConfig"),
    ({"instruction": "q", "output": "a"}, "InstructionsConfig"),
    ({"query": "q", "response": "a"}, "InstructionsConfig"),
    ({"image": "a.jpg", "caption": "c"}, "LavisCaptionsConfig"),
    ({"image": "a.jpg", "question": "q", "answer": ["a"]}, "LavisVqaConfig"),
    ({"question_id": 1, "image": "a.jpg", "text": "q", "label": "yes"}, "PopeConfig"),
    (REF, "RefCocoConfig"),
    ({"file_name": "a.jpg", "text": "t"}, "ImageFolderConfig"),
]
OBJECTS = [
    (
        {
            "info": {},
            "images": [{"id": 1, "file_name": "a.jpg"}],
            "annotations": [{"id": 2, "image_id": 1, "caption": "c"}],
        },
        "CocoCaptionsConfig",
    ),
    (
        {"annotations": [{"id": 2, "image_id": 1, "caption": "c"}], "images": [{"id": 1, "file_name": "a.jpg"}]},
        "CocoCaptionsConfig",
    ),
    ({"annotations": [{"image_id": "2", "caption": "c"}]}, "MiniGpt4CaptionsConfig"),
    ({"data": [{"question": "q", "question_id": 1, "image_id": "x", "answers": ["a"]}]}, "TextVqaConfig"),
    ({"1": {"question": "q", "answer": "a", "imageId": "x"}}, "GqaConfig"),
    ({"1": {"question": "q", "answer": 0, "choices": ["a", "b"], "split": "train"}}, "ScienceQaConfig"),
]


@pytest.mark.parametrize(("row", "config"), ROWS, ids=[config for _, config in ROWS])
@pytest.mark.parametrize("form", ["list", "lines", "one line", "pretty list"])
def test_rows(tmp_path, caplog, row, config, form):
    caplog.set_level("INFO")
    rows = [row] if form == "one line" else [row, row]
    text = json.dumps(rows, indent=2 if form == "pretty list" else None)
    if "line" in form:
        text = "\n".join(map(json.dumps, rows)) + "\n"
    path = str(write(tmp_path, text, "whatever.txt"))
    assert sniff(path).reader is getattr(readers, config)
    assert everything(AutoConfig(path=path).build())
    assert "is read as" in caplog.text


@pytest.mark.parametrize(("content", "config"), OBJECTS, ids=[config for _, config in OBJECTS])
@pytest.mark.parametrize("indent", [None, 1])
def test_objects(tmp_path, content, config, indent):
    path = str(write(tmp_path, json.dumps(content, indent=indent), "x.json"))
    assert sniff(path).reader is getattr(readers, config)
    assert len(AutoConfig(path=path, image_root=str(tmp_path / "i"), name="n").build()) == 1


@pytest.mark.parametrize(
    ("file", "config", "count"),
    [
        ("annotations/captions.json", "CocoCaptionsConfig", 605),
        ("annotations/llava_instruct.json", "LlavaJsonConfig", 121),
        ("annotations/llava_pretrain.json", "LlavaJsonConfig", 121),
        ("annotations/minigpt4_align.json", "MiniGpt4CaptionsConfig", 121),
        ("annotations/pope_random.jsonl", "PopeConfig", None),
        ("annotations/vqa_questions.json", "VqaV2Config", 52),
        ("text/llava_qa90_conversations.json", "LlavaJsonConfig", 30),
        ("text/mllm_demo_conversations.json", "LlavaJsonConfig", 6),
        ("text/vicuna_dummy_conversations.json", "LlavaJsonConfig", 52),
        ("text/xcomposer_single_turn.json", "LlavaJsonConfig", 2),
        ("metrics/vqa/questions.json", "VqaV2Config", 600),
        ("metrics/pope/coco_pope_random_first600.jsonl", "PopeConfig", 600),
    ],
)
def test_real_files(file, config, count):
    path = shared(*file.split("/"))
    found = sniff(str(path))
    assert found.reader is getattr(readers, config)
    image_name = "images/coco_{image_id:012d}.jpg" if config == "VqaV2Config" else None
    data = AutoConfig(path=str(path), image_root=str(path.parents[1]), image_name=image_name).build()
    assert len(data) == (count or len(data)) > 0


def talk(question, answer="a", **fields):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **fields}


@pytest.mark.parametrize("answer", ["use the <img> tag", "<ref>dog</ref><box>[[1, 2, 3, 4]]</box>", "</box>"])
def test_marks_in_an_answer_make_no_qwen_vl(tmp_path, answer):
    rows = [talk("<image>q", image="a.jpg"), talk("<image>q", answer, image="a.jpg"), talk("q", answer)]
    data = AutoConfig(path=str(write(tmp_path, rows))).build()
    assert [len(sample.turns[0].media) for sample in everything(data)] == [1, 1, 0]


def test_llava_rows_with_pictures_are_not_read_as_qwen_vl(tmp_path):
    path = str(write(tmp_path, [talk("<image>q", image="a.jpg"), QWEN]))
    with pytest.raises(DataError, match="row 0: LLaVA conversations; row 1: Qwen-VL conversations"):
        sniff(path)
    assert sniff(str(write(tmp_path, [talk("q"), QWEN]))).reader is readers.QwenVlJsonConfig


def test_folders_and_tars(tmp_path):
    caption_tar(tmp_path / "tars/0.tar", 2)
    caption_tar(tmp_path / "deep/x/1.tar", 2)
    write(tmp_path / "pics", "file_name,text\na.jpg,t\n", "metadata.csv")
    write(tmp_path, "file_name,text\na.jpg,t\n", "t.csv")
    for path in ("tars", "tars/0.tar", "tars/*.tar", "tars/{0..0}.tar", "deep"):
        assert len(AutoConfig(path=str(tmp_path / path)).build()) == 2
    for path in ("pics", "t.csv", "pics/metadata.csv"):
        assert len(AutoConfig(path=str(tmp_path / path)).build()) == 1
    write(tmp_path / "hf", {}, "dataset_info.json")
    write(tmp_path / "hf", {}, "state.json")
    write(tmp_path / "pq", b"PAR1", "data/train-0.parquet")
    for path in ("hf", "pq", "pq/data/train-0.parquet"):
        assert sniff(str(tmp_path / path)).reader is readers.TableConfig


def test_internvl_mixture(tmp_path):
    write(tmp_path, json.dumps({"conversations": QA}), "a.jsonl")
    mixture = {"x": {"root": "", "annotation": str(tmp_path / "a.jsonl"), "repeat_time": 2, "length": 1}}
    assert len(AutoConfig(path=str(write(tmp_path, mixture, "m.json"))).build()) == 2


def test_tools_are_sharegpt_which_says_what_it_does_with_them(tmp_path):
    path = str(write(tmp_path, [{"conversations": [*QA, {"from": "observation", "value": ""}]}]))
    assert sniff(path).reader is readers.ShareGptConfig
    with pytest.raises(DataError, match="a conversation with tools"):
        AutoConfig(path=path).build()


def test_text_rows_among_richer_ones(tmp_path):
    rows = [{"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}, QWEN]
    assert sniff(str(write(tmp_path, rows))).reader is readers.QwenVlJsonConfig


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"conversations": QA}, chat("q", "a")],
            "rows of different formats (row 0: LLaVA conversations; row 1: chat messages)",
        ),
        ([{"conversations": QA}, {"x": 1}], "row 1: unknown"),
        ([{"image": "a.jpg", "title": "c"}], "nearest is LAVIS captions, which also needs caption"),
        ([{"x": 1}], "rows with x"),
        ([1, 2], "rows such as 1"),
        ([], "no row"),
        ({"x": 1, "y": [2]}, "an object with x, y"),
        ({"questions": [{"question_id": 1, "question": "q", "image_id": 1}]}, "VQAv2 questions without their answers"),
        ("plain words", "a file that begins with 'plain words'"),
        ("", "an empty file"),
        ('{"a":' * 100_000, "recursion"),
        ('[{"a": 1}]'.encode("utf-16"), "byte 0 is not UTF-8"),
        (pickle.dumps([1]), "a pickle, which could run code"),
        (gzip.compress(b"x", mtime=0), "a compressed file"),
        ('{"a": NaN}', "NaN"),
        ('[{"a": 1}, ', "the file ends inside a row"),
    ],
)
def test_unknown_content(tmp_path, content, message):
    with pytest.raises(DataError) as error:
        AutoConfig(path=str(write(tmp_path, content))).build()
    assert message in str(error.value), str(error.value)
    assert "data.json" in str(error.value)


def test_unknown_folders(tmp_path):
    write(tmp_path / "a", [], "rows.json")
    with pytest.raises(DataError) as error:
        sniff(str(tmp_path / "a"))
    assert "a folder with rows.json" in str(error.value)
    assert error.value.fix == f"data.path={tmp_path / 'a/rows.json'}"
    caption_tar(tmp_path / "b/0.tar", 1)
    write(tmp_path / "b", "", "metadata.csv")
    with pytest.raises(DataError, match=r"a folder that could be an image folder .* and webdataset tars"):
        sniff(str(tmp_path / "b"))
    with pytest.raises(DataError, match="does not exist"):
        sniff(str(tmp_path / "nothing.json"))


def test_settings_that_do_nothing_are_named(tmp_path, caplog):
    caption_tar(tmp_path / "0.tar", 3)
    assert len(AutoConfig(path=str(tmp_path), image_root="x", limit=2).build()) == 2
    assert "data.image_root has no effect on webdataset tars" in caplog.text
