"""ShareGPT, chat messages, Qwen-VL and instruction rows: what they become, and the message for each broken one."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from mmexp.data import InstructionsConfig, MessagesConfig, QwenVlJsonConfig, ShareGptConfig
from mmexp.data.readers.parts import check_path
from mmexp.errors import DataError
from tests.data.readers.make import complaint, everything, flat, jpeg, write

QA = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def one(config, folder, row, **options):
    return config(path=str(write(folder, [row])), **options).build()[0]


def test_sharegpt_with_system_and_two_pictures(tmp_path):
    turns = [{"from": "human", "value": "<image>who? <image>"}, {"from": "gpt", "value": "they <image>"}]
    row = {"conversations": turns, "system": "be kind", "images": ["a.jpg", "b/c.jpg"], "tools": "", "lang": "en"}
    sample = one(ShareGptConfig, tmp_path, row)
    assert flat(sample) == [
        ("system", "be kind"),
        ("user", tmp_path / "a.jpg", "who? ", tmp_path / "b/c.jpg"),
        ("assistant", "they <image>"),
    ]
    assert (sample.id, sample.meta) == ("row-0", {"tools": "", "lang": "en"})


def test_sharegpt_tools_as_text(tmp_path):
    speakers = ["human", "function_call", "observation", "gpt"]
    row = {"conversations": [{"from": name, "value": name} for name in speakers], "tools": "[]"}
    assert "a conversation with tools" in complaint(ShareGptConfig(path=str(write(tmp_path, [row]))))
    sample = one(ShareGptConfig, tmp_path, row, tools="as_text")
    assert [turn.role for turn in sample.turns] == ["user", "assistant"] * 2
    assert sample.meta == {"tools": "[]"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ["a.jpg"]}, "0 <image> in the human turns and 1 in `images`"),
        ({"images": "a.jpg", "conversations": [{"from": "human", "value": "<image><image>"}]}, "2 <image> in"),
        ({"images": [3]}, "`images` is [3]"),
        ({"images": ["../a.jpg"]}, "leaves the image folder"),
        ({"videos": ["a.mp4"]}, "`videos` is ['a.mp4']"),
        ({"image": "a.jpg", "images": ["b.jpg"]}, "`images` is ['b.jpg'] and `image` is 'a.jpg'"),
        ({"image": "a.jpg", "images": None}, "0 <image> in the human turns and 1 in `images`"),
        ({"system": ["s"]}, "`system` is ['s']"),
        ({"system": "s", "conversations": [{"from": "system", "value": "t"}, *QA]}, "a field `system` and a system"),
        ({"conversations": QA[:1], "chosen": QA[1], "rejected": QA[1]}, "`chosen` is"),
        ({"conversations": None}, "`conversations` is None"),
        ({"conversations": [{"from": "human"}]}, "a turn is {'from': 'human'}"),
        ({"conversations": [{"from": "bing", "value": ""}]}, "a turn from 'bing'"),
        ({"conversations": QA[::-1]}, "turn 1 of the conversation is from the assistant"),
        ({"conversations": [*QA, {"from": "observation", "value": "x"}]}, "a turn from 'observation'"),
    ],
)
def test_broken_sharegpt(tmp_path, change, message):
    found = complaint(ShareGptConfig(path=str(write(tmp_path, [{"id": 5, "conversations": QA, **change}]))))
    assert message in found, found
    assert "row 0 (line 1, id '5')" in found


def chat(*contents, **fields):
    roles = ("user", "assistant") * 3
    return {
        "messages": [{"role": role, "content": said} for role, said in zip(roles, contents, strict=False)],
        **fields,
    }


def test_messages_with_parts(tmp_path):
    data = "data:image/jpeg;base64," + base64.b64encode(jpeg()).decode()
    parts = [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "one"},
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "image"},
        {"type": "image_url", "image_url": "b.png"},
    ]
    row = chat(parts, [{"type": "text", "text": "two"}], images=["c.png"], source="s")
    row["messages"].insert(0, {"role": "developer", "content": "rules"})
    sample = one(MessagesConfig, tmp_path, row)
    user = ("user", tmp_path / "a.png", "one", jpeg(), tmp_path / "c.png", tmp_path / "b.png")
    assert flat(sample) == [("system", "rules"), user, ("assistant", "two")]
    assert sample.meta == {"source": "s"}


def test_messages_with_marks_and_loss(tmp_path):
    row = chat("<image>\nq", "the <image>", "again <image>", "b", images=["a.png", "b.png"])
    for message in row["messages"]:
        message["loss"] = message["role"] == "assistant"
    sample = one(MessagesConfig, tmp_path, row)
    assert flat(sample)[0] == ("user", tmp_path / "a.png", "\nq")
    assert flat(sample)[1:3] == [("assistant", "the <image>"), ("user", "again ", tmp_path / "b.png")]
    row["messages"][1]["loss"] = False
    assert "`loss` is False on a message of the assistant" in complaint(
        MessagesConfig(path=str(write(tmp_path, [row])))
    )


@pytest.mark.parametrize(("key", "value"), [("loss", 0), ("weight", 0), ("weight", 0.5), ("loss", "no")])
def test_a_turn_that_shall_not_be_learnt_is_refused(tmp_path, key, value):
    row = chat("q", "a", "q", "b")
    row["messages"][3][key] = 1
    assert len(flat(one(MessagesConfig, tmp_path, row))) == 4
    row["messages"][1][key] = value
    found = complaint(MessagesConfig(path=str(write(tmp_path, [row], "b.json"))))
    assert f"`{key}` is {value!r} on a message of the assistant" in found


def test_the_field_system_is_a_turn(tmp_path):
    sample = one(MessagesConfig, tmp_path, chat("q", "a", system="rules"))
    assert (flat(sample)[0], sample.meta) == (("system", "rules"), {})


@pytest.mark.parametrize("key", ["image", "url", "path"])
def test_empty_fields_of_a_part_hide_no_picture(tmp_path, key):
    part = {"type": "image", "image": None, "url": None, "text": None, key: "a.png"}
    assert flat(one(MessagesConfig, tmp_path, chat([part], "a")))[0] == ("user", tmp_path / "a.png")
    part["path"], part["image"] = "b.png", "c.png"
    assert "one picture in a part" in complaint(
        MessagesConfig(path=str(write(tmp_path, [chat([part], "a")], "b.json")))
    )


def boxed(**objects):
    given = {"ref": [], "bbox": [[0, 0, 0.5, 1]], "bbox_type": "norm1", **objects}
    return chat("<image><bbox>", "a", images=["a.png"], objects=given)


def test_a_box_may_stand_before_its_picture(tmp_path):
    write(tmp_path, jpeg(8, 4), "a.jpg")
    row = chat("<bbox>?", "a", "<image>", "b", images=["a.jpg"], objects={"bbox": [[0, 2, 4, 4]]})
    assert flat(one(MessagesConfig, tmp_path, row))[0] == ("user", ("", 0, (0.0, 0.5, 0.5, 1.0)), "?")


@pytest.mark.parametrize("field", ["image", "images"])
def test_qwen_vl_loses_no_picture_that_stands_beside_the_text(tmp_path, field):
    row = {"conversations": QA, field: ["a.jpg"]}
    assert f"`{field}` is ['a.jpg']" in complaint(QwenVlJsonConfig(path=str(write(tmp_path, [row]))))


def test_swift_objects(tmp_path):
    objects = {
        "ref": ["a dog", "cat"],
        "bbox": [[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]],
        "bbox_type": "norm1",
        "image_id": [0, 1],
    }
    row = chat(
        "<image><image>find <ref-object>", "<bbox>, <ref-object><bbox>!", images=["a.png", "b.png"], objects=objects
    )
    sample = one(MessagesConfig, tmp_path, row)
    assert flat(sample)[0] == ("user", tmp_path / "a.png", tmp_path / "b.png", "find ", "a dog")
    assert flat(sample)[1] == ("assistant", ("", 0, (0.1, 0.2, 0.5, 0.6)), ", ", ("cat", 1, (0.0, 0.0, 1.0, 1.0)), "!")


@pytest.mark.parametrize(("orientation", "box"), [(1, (0.5, 0.5, 1.0, 1.0)), (6, (1.0, 0.25, 1.0, 0.5))])
def test_swift_pixels_are_shares_of_the_upright_picture(tmp_path, orientation, box):
    write(tmp_path, jpeg(8, 4, orientation), "a.jpg")
    given = [4, 2, 8, 4] if orientation == 1 else [3.99, 2, 4, 4]
    row = chat("<image>q", "<bbox>", images=["a.jpg"], objects={"bbox": [given], "ref": []})
    region = flat(one(MessagesConfig, tmp_path, row))[1][1]
    assert region[2] == pytest.approx(box, abs=0.01)
    row["objects"]["bbox"] = [[0, 0, 30, 3]]
    data = MessagesConfig(path=str(write(tmp_path, [row], "b.json"))).build()
    with pytest.raises(DataError, match=r"b\.json: row 0 .*the box \[0, 0, 30, 3\] in a picture"):
        data[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (chat(), "`messages` is []"),
        (chat("q", 3), "a message is"),
        (chat([{"type": "audio"}], "a"), "a part is {'type': 'audio'}"),
        (chat("q", [{"type": "image", "image": "a.png"}]), "pictures in user messages only"),
        (chat([{"type": "image_url", "image_url": {"url": "https://x/a.png"}}], "a"), "is an address"),
        (chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}], "a"), "base64 data is broken"),
        (chat([{"type": "image", "image": "/etc/a.png"}], "a"), "is absolute"),
        (chat("<image>", "a"), "1 <image> in the human turns and 0 in `images`"),
        (chat("q", "a", images=["a.png"]), "0 <image> in the human turns and 1 in `images`"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a message of role 'tool'"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [1]}]},
            "tool_calls",
        ),
        (chat("q", "a", tools=[{"name": "x"}]), "`tools` is"),
        (chat("q", "a", image="a.png", images=None), "0 <image> in the human turns and 1 in `images`"),
        (chat("q", "a", system=3), "`system` is 3"),
        (boxed(ref="dog"), "`ref` of `objects` is 'dog'"),
        (boxed(ref=5), "`ref` of `objects` is 5"),
        (boxed(bbox=5), "`bbox` of `objects` is 5"),
        (boxed(image_id=["x"]), "`image_id` of `objects` is ['x']"),
        (boxed(image_id=[-1]), "a box in picture -1 of 1"),
        (boxed(image_id=[1]), "a box in picture 1 of 1"),
        (chat("<image><bbox>", "a", images=["a.png"], objects={"bbox": []}), "more <bbox> than the 0"),
        (chat("<image>q", "a", images=["a.png"], objects={"bbox": [[0, 0, 1, 1]]}), "0 <bbox> in the messages"),
        (chat("<image><bbox>", "a", images=["a.png"], objects={"bbox": [[1, 1, 0, 0]]}), "left < right"),
        (chat("<image><bbox>", "a", images=["a.png"], objects={"bbox": [[1, 1]]}), "four numbers"),
        (chat("<bbox>", "a", objects={"bbox": [[0, 0, 1, 1]], "bbox_type": "norm1"}), "a box in picture 0 of 0"),
        (
            chat("<image><bbox>", "a", images=["a.png"], objects={"bbox": [[0, 0, 1, 1]], "bbox_type": "x"}),
            "`bbox_type`",
        ),
    ],
)
def test_broken_messages(tmp_path, row, message):
    found = complaint(MessagesConfig(path=str(write(tmp_path, [row]))))
    assert message in found, found


def test_qwen_vl(tmp_path):
    turns = [
        {
            "from": "user",
            "value": "Picture 1: <img>a/b c.jpg</img>\nPicture 2: <img>d.jpg</img>\nWhere is <ref>the dog</ref>?",
        },
        {
            "from": "assistant",
            "value": "<ref>The dog</ref><box>(100,200),(500,999)</box><box>(0,0),(10,10)</box>"
            " and <box>(1,2),(3,4)</box>.",
        },
    ]
    sample = one(QwenVlJsonConfig, tmp_path, {"id": "identity_0", "conversations": turns})
    assert flat(sample) == [
        ("user", tmp_path / "a/b c.jpg", tmp_path / "d.jpg", "Where is ", "the dog", "?"),
        (
            "assistant",
            ("The dog", 1, (0.1, 0.2, 0.5, 0.999), (0.0, 0.0, 0.01, 0.01)),
            " and ",
            ("", 1, (0.001, 0.002, 0.003, 0.004)),
            ".",
        ),
    ]


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("Picture 2: <img>a.jpg</img>\nq", "a", "`Picture 2` is picture 1"),
        ("<img>/a.jpg</img>q", "a", "is absolute"),
        ("<img>a.jpg", "a", "<img> in '<img>a.jpg'"),
        ("<img>a.jpg</img>", "<box>(1,2)</box>", "<box> in"),
        ("<img>a.jpg</img>", "<quad>(1,2)</quad>", "<quad> in"),
        ("<img>a.jpg</img>", "<box>(5,5),(2,9)</box>", "left < right"),
        ("<img>a.jpg</img>", "<box>(5,5),(2000,9)</box>", "inside of the picture"),
        ("q", "<box>(1,2),(3,4)</box>", "before any picture"),
        ("q", "<img>a.jpg</img>", "a picture in a turn of the assistant"),
    ],
)
def test_broken_qwen_vl(tmp_path, question, answer, message):
    turns = [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]
    found = complaint(QwenVlJsonConfig(path=str(write(tmp_path, [{"conversations": turns}]))))
    assert message in found, found


def test_instructions(tmp_path):
    rows = [
        {
            "instruction": "<image>say",
            "input": "more",
            "output": "yes",
            "system": "s",
            "history": [["q", "a"]],
            "images": ["a.jpg"],
        },
        {"query": "q", "response": "a", "x": 1},
    ]
    first, second = everything(InstructionsConfig(path=str(write(tmp_path, rows))).build())
    assert flat(first) == [
        ("system", "s"), ("user", "q"), ("assistant", "a"),
        ("user", tmp_path / "a.jpg", "say\nmore"), ("assistant", "yes"),
    ]  # fmt: skip
    assert (flat(second), second.meta) == ([("user", "q"), ("assistant", "a")], {"x": 1})
    for row, message in [
        ({"instruction": "q", "output": ""}, "`output` is empty"),
        ({"instruction": "q"}, "`output` is missing"),
        ({"query": "q", "response": "a", "history": [["q"]]}, "`history` is [['q']]"),
        ({"query": "q", "response": "a", "system": 3}, "`system` is 3"),
        ({"query": "q", "response": 3}, "`response` is 3"),
    ]:
        assert message in complaint(InstructionsConfig(path=str(write(tmp_path, [row]))))


def test_hints_are_words_and_tell_rows_without_pictures(tmp_path):
    rows = [chat("<image>two words", "a b  c", images=["a.png"]), chat("one", "two")]
    hints = MessagesConfig(path=str(write(tmp_path, rows))).build().hints()
    assert hints.dtype.name == "int32"
    assert hints.tolist() == [5, -2]


@pytest.mark.parametrize(
    "path", ["a.png", "a/b.c/d-1 (2).jpg", "COCO_1.jpg", "..a.png", "a..b.png", "\u56fe.png", "-a.png"]
)
def test_good_paths(path):
    check_path(path)


@pytest.mark.parametrize(
    "path", ["", "/a", "a/../../b", "../a", "..", "http://a", "C:a.png", "a\0b", "file:a", "gs://x/y"]
)
def test_bad_paths(path):
    with pytest.raises(DataError, match="the image path"):
        check_path(path)


def test_links_out_of_the_folder_are_refused_for_every_format(tmp_path):
    Path(tmp_path / "in").mkdir()
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    (tmp_path / "in/a.jpg").symlink_to(tmp_path / "secret.jpg")
    row = chat("<image>q", "a", images=["a.jpg"])
    assert "outside of the image folder" in complaint(MessagesConfig(path=str(write(tmp_path / "in", [row]))))
