"""The LLaVA reader: what it reads, and the message for each way a file can be wrong."""

from __future__ import annotations

import json
import pickle

import pytest

from mmexp.contracts import Region, Text
from mmexp.data import LlavaJsonConfig
from mmexp.errors import ConfigError, DataError
from mmexp.prompt import ChatTemplate
from tests.shared_data import load_rows, load_template, shared


def row(human="<image>\nq", image="a.png", **fields):
    made = {
        "id": "7",
        "image": image,
        "conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": "a"}],
    }
    return {key: value for key, value in {**made, **fields}.items() if value is not None}


def build(folder, rows, name="data.json", **options):
    text = rows if isinstance(rows, str) else json.dumps(rows)
    (folder / name).write_text(text, encoding="utf-8")
    return LlavaJsonConfig(path=str(folder / name), **options).build()


def error_of(folder, rows, **options) -> str:
    with pytest.raises(DataError) as error:
        iterate(build(folder, rows, **options))
    return str(error.value)


def test_reads_real_rows():
    path = shared("annotations", "llava_instruct.json")
    data = LlavaJsonConfig(path=str(path), image_root=str(path.parents[1])).build()
    rows = load_rows("annotations", "llava_instruct.json")
    assert len(data) == len(rows)
    for sample, source in zip((data[index] for index in range(len(data))), rows, strict=True):
        assert sample.id == source["id"]
        assert [turn.role for turn in sample.turns] == ["user", "assistant"] * (len(sample.turns) // 2)
        assert sum(len(turn.media) for turn in sample.turns) == 1


def test_parts_stand_in_reading_order(tmp_path):
    rows = [row("a <image> b<image>", ["x.png", "y.png"], type="count", box=[1, 2])]
    sample = build(tmp_path, rows)[0]
    kinds = [getattr(part, "text", None) or part.source for part in sample.turns[0].parts]
    assert kinds == ["a ", str(tmp_path / "x.png"), " b", str(tmp_path / "y.png")]
    assert sample.meta == {"type": "count", "box": [1, 2]}
    assert sample.dataset == "data"


def test_mark_in_an_answer_is_text(tmp_path):
    conversation = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "the <image> tag"}]
    sample = build(tmp_path, [row(image=None, conversations=conversation)])[0]
    assert sample.turns[1].text == "the <image> tag"
    assert not sample.turns[1].media


def test_json_lines_bom_and_limit(tmp_path):
    lines = "\ufeff" + "\n".join(json.dumps(row(id=number)) for number in range(5)) + "\n\n"
    assert [sample.id for sample in iterate(build(tmp_path, lines, "d.jsonl"))] == ["0", "1", "2", "3", "4"]
    assert len(build(tmp_path, lines, "d.jsonl", limit=2)) == 2
    assert len(build(tmp_path, [row()] * 5, limit=3)) == 3


def iterate(data):
    return [data[index] for index in range(len(data))]


def test_answers_before_the_first_question_are_skipped(tmp_path):
    turns = [{"from": "gpt", "value": "hello"}, *row()["conversations"]]
    assert [turn.role for turn in build(tmp_path, [row(conversations=turns)])[0].turns] == ["user", "assistant"]


def test_rows_survive_pickling_and_have_a_fingerprint(tmp_path):
    data = build(tmp_path, [row(), row(id="8")])
    assert pickle.loads(pickle.dumps(data))[1] == data[1]
    other = build(tmp_path, [row(), row(id="9")], "other.json")
    assert data.fingerprint != other.fingerprint
    assert data[-1].id == "8"
    with pytest.raises(IndexError):
        data[2]


def test_prepare_runs_first(tmp_path):
    class Writer:
        def prepare(self):
            (tmp_path / "late.json").write_text(json.dumps([row()]))

    assert len(LlavaJsonConfig(path=str(tmp_path / "late.json"), prepare=Writer()).build()) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), row("no mark")], "row 1 (line 1, id '7'): 0 <image> in the human turns and 1 in `image`"),
        ([row("<image><image>")], "2 <image> in the human turns and 1 in `image`"),
        ([row(image=None)], "1 <image> in the human turns and 0 in `image`"),
        ([row(image=3)], "`image` is 3"),
        ([row(conversations=[])], "`conversations` is []"),
        ([{"id": "7"}], "`conversations` is missing"),
        ([row(conversations=[{"from": "cat", "value": ""}])], "a turn from 'cat'"),
        ([row(conversations=[{"from": "human"}])], "a turn is {'from': 'human'}"),
        ([row(conversations=row()["conversations"][:1] * 2)], "turn 2 of the conversation is from the user"),
        ([row(conversations=row()["conversations"][1:])], "no human turn"),
        (["text"], "a row of type str"),
        ([row(image="/etc/passwd")], "is absolute"),
        ([row("<video>q", image=None, video="a.mp4")], "`video` is 'a.mp4'"),
        ([row("q", image=None, images=["a.png"])], "`images` is ['a.png']"),
        ([row(image="https://x/a.png")], "is an address"),
        ([row(image="../a.png")], "leaves the image folder"),
        ([row(image="a\0.png")], "NUL"),
        ([row(image="")], "is empty"),
        ([], "no row"),
        ("", "an empty file"),
        ("42", "begins with '42'"),
        ('{"data": []}', "`conversations` is missing"),
        ('[{"id": 1},\n{"id": 2, "id": 3}]', "data.json:2 (row begins here): the key 'id' twice"),
        ('[\n{"id": NaN}]', "data.json:2 (row begins here): NaN"),
        ('[\n{"id": 1},\n{"id": }]', "data.json:3: broken JSON"),
        ('[{"id": 1}\n{"id": 2}]', "data.json:2: '{\"id\": 2}]'"),
        ('[{"id": "a"', "the file ends inside a row"),
        ('[{"id": "a"}', "the file ends inside the list"),
        ('[{"id": "a"}] x', "'x' after the list"),
        ('{"id": 1}\n{"id": }', "data.json:2: broken JSON"),
        ('[{"id": "\\ud83d"}]', "surrogate"),
    ],
)
def test_mistake_is_named_with_its_place(tmp_path, rows, message):
    found = error_of(tmp_path, rows)
    assert message in found, found
    assert "data.json" in found


def test_many_bad_rows_are_counted_and_the_first_shown(tmp_path):
    found = error_of(tmp_path, [row("none")] * 9 + [row()])
    assert "9 of 10 rows" in found
    assert "... and 4 more" in found
    assert "row 4 " in found


def test_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "secret.png")
    assert "outside of the image folder" in error_of(tmp_path / "in", [row()])


def test_missing_file_lists_near_ones(tmp_path):
    build(tmp_path, [row()], "llava_instruct.json")
    with pytest.raises(DataError) as error:
        LlavaJsonConfig(path=str(tmp_path / "llava_instuct.json")).build()
    assert "llava_instruct.json" in error.value.fix
    with pytest.raises(DataError) as error:
        LlavaJsonConfig(path=str(tmp_path / "no/such/x.json")).build()
    assert str(tmp_path) in error.value.fix


def test_not_utf8(tmp_path):
    (tmp_path / "data.json").write_bytes(b'[{"id": "\xff"}]')
    with pytest.raises(DataError, match="not UTF-8"):
        LlavaJsonConfig(path=str(tmp_path / "data.json")).build()


def test_reader_and_template_need_no_torch():
    import subprocess
    import sys

    code = "import sys, mmexp.data, mmexp.prompt; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    assert ChatTemplate(name="x").controls == ("bos", "eos")


def test_a_folder_named_in_root_and_path_counts_once(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").touch()
    data = build(tmp_path, [row(image="images/1.jpg"), row(image="other/1.jpg")], image_root=str(tmp_path / "images"))
    assert data[0].turns[0].media[0].source == str(tmp_path / "images" / "1.jpg")
    assert data[1].turns[0].media[0].source == str(tmp_path / "images" / "other" / "1.jpg")


def boxed(answer="[0.10, 0.20, 0.30, 0.40]", human="<image>\nWhere?"):
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]
    return row(human, conversations=turns)


def test_boxes_become_regions_of_the_picture_before_them(tmp_path):
    answer = "A cat; red star [0.10, 0.20, 0.30, 0.40] and small ring [0.5, .6, 1, 0.9]. No box: [0.3, 0.2, 0.1, 0.4]"
    data = build(tmp_path, [boxed(answer, "<image>\nName this: [0.10, 0.20, 0.30, 0.40]!")], boxes="regions")
    asked, said = data[0].turns
    star, ring = (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 1.0, 0.9)
    assert asked.parts[1:] == (Text(text="\nName this: "), Region(boxes=(star,)), Text(text="!"))
    assert said.parts == (
        Text(text="A cat; "),
        Region(boxes=(star,), phrase="red star"),
        Text(text=" "),
        Region(boxes=(ring,), phrase="and small ring"),
        Text(text=". No box: [0.3, 0.2, 0.1, 0.4]"),
    )


def test_a_box_belongs_to_the_last_picture_and_to_none_before_the_first(tmp_path):
    turns = [
        {"from": "human", "value": "Is [0.1, 0.2, 0.3, 0.4] a box? <image> <image>"},
        {"from": "gpt", "value": "[0.1, 0.2, 0.3, 0.4]"},
    ]
    asked, said = build(tmp_path, [row(image=["a.png", "b.png"], conversations=turns)], boxes="regions")[0].turns
    assert asked.text.startswith("Is [0.1, 0.2, 0.3, 0.4] a box?")
    assert said.parts == (Region(boxes=((0.1, 0.2, 0.3, 0.4),), medium=1),)


def test_boxes_stay_text_unless_asked_and_count_as_another_dataset(tmp_path):
    plain = build(tmp_path, [boxed()])
    regions = LlavaJsonConfig(path=str(tmp_path / "data.json"), boxes="regions").build()
    assert plain[0].turns[1].text == "[0.10, 0.20, 0.30, 0.40]"
    assert plain.fingerprint != regions.fingerprint
    assert list(plain.hints()) == list(regions.hints())
    with pytest.raises(ConfigError, match=r"data\.boxes"):
        LlavaJsonConfig(path="x", boxes="polygons")


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("vicuna_v1", "red star [0.12, 0.34, 0.56, 0.78]"),
        ("qwen_vl", "<ref>red star</ref><box>(120,340),(560,780)</box>"),
        ("qwen_vl_base", "<ref>red star</ref><box>(120,340),(560,780)</box>"),
        ("minigptv2", "<p>red star</p> {<12><34><56><78>}"),
    ],
)
def test_a_template_writes_them_in_its_own_notation(tmp_path, template, written):
    sample = build(tmp_path, [boxed("red star [0.12, 0.34, 0.56, 0.78]")], boxes="regions")[0]
    segments = load_template(template).render(sample.turns[:1], generation_prompt=True)
    answered = load_template(template).render(sample.turns)[len(segments) :]
    assert written in "".join(segment.text or segment.control or "" for segment in answered)
